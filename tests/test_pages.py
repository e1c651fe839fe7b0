"""The pages Runs, Compare and Distributions in each of their states, by Streamlit's own harness."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from bnviz import jobs, paper, queue, store
from bnviz.about import change_about, read_about
from bnviz.index import Index
from bnviz.settings import NORMALIZATIONS
from bnviz.status import RunError, State
from bnviz.store import StoreError, open_run
from bnviz.trace import TraceWriter
from bnviz.ui import runs_page

from .test_lab import alive, open_script, recorded, texts

PAGES = (
    "runs_page",
    "compare_page",
    "distributions_page",
    "method_page",
    "sweeps_page",
    "paper_page",
)
WHEN_EMPTY = {
    "sweeps_page": "There are no sweeps yet. Choose one above and start it",
    "paper_page": "It is not trained here yet. The two runs take a minute or two",
}


@pytest.fixture
def page(root):
    def load(name, **query):
        script = f"""
from bnviz.ui import frame, {name}
with frame.checked_address("{name}"):
    {name}.page()
"""
        return open_script(script, **query)

    return load


def charts(app):
    components = app.main.get("bidi_component")
    return [json.loads(json.loads(e.proto.json)["figure"]) for e in components]


@pytest.mark.parametrize("name", PAGES)
def test_an_empty_dashboard_says_what_to_do(page, name):
    app = page(name)
    assert WHEN_EMPTY.get(name, "There are no runs yet. Start some on the page Lab") in texts(
        app.info
    )


STATES = {
    "running": {"state": State.RUNNING},
    "failed": {"state": State.FAILED, "error": RunError(type="E", message="<b>", traceback="t")},
    "finished": {},
    "diverged": {"state": State.DIVERGED, "summary": {"reason": "not finite"}},
    "paused": {"state": State.PAUSED, "reason": "no space"},
    "waiting for its first record": {"state": State.RUNNING, "records": 0},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", PAGES)
def test_runs_in_every_state_are_shown(page, root, name, state):
    process = alive() if STATES[state].get("state") is State.RUNNING else {}
    status = {**process, **STATES[state]}
    ids = [
        recorded(root, number, kind, hidden=(100, 100, 100), **status)
        for number, kind in ((1, "none"), (2, "batch"))
    ]
    for run_id in ids:
        change_about(open_run(root / run_id), group="mine")
    app = page(name, run=ids, of=ids[0], group="mine")
    assert "Cannot" not in texts(app.error)
    if name == "method_page":
        shown = "normalizes nothing by the statistics of a batch" in texts(app.info)
    else:
        shown = app.dataframe if name == "runs_page" else charts(app)
    assert shown or state == "waiting for its first record"


def test_method_shows_a_run_with_bn_at_first(page, root):
    recorded(root, 1, "batch")
    recorded(root, 2, "none")
    assert page("method_page").selectbox(key="of").value.endswith("figure1-batch-abc121")


@pytest.mark.parametrize("name", PAGES)
def test_cnns_of_every_normalization_are_shown(page, root, name):
    cnn = {"model.kind": "cnn", "model.channels": [2, 3], "model.groups": 1}
    ids = [
        recorded(root, number, kind, hidden=(4,), settings=cnn)
        for number, kind in enumerate(NORMALIZATIONS)
    ]
    for run_id in ids:
        change_about(open_run(root / run_id), group="mine")
    app = page(name, run=ids, of=ids[-1], group="mine", layer="conv2", dlayer="conv2", paper="true")
    assert not texts(app.warning)
    if name == "compare_page":
        names = {trace["name"] for figure in charts(app) for trace in figure["data"]}
        assert set(NORMALIZATIONS.values()) <= names
        titles = str([figure["layout"]["annotations"] for figure in charts(app)[1:]])
        assert all(title in titles for title in NORMALIZATIONS.values())


@pytest.mark.parametrize("name", PAGES)
def test_damaged_runs_are_named_and_the_others_shown(page, root, name):
    whole = recorded(root, 1, "none")
    broken = recorded(root, 2, "batch")
    lost = recorded(root, 3, "batch")
    (root / broken / "config.json").write_text("{")
    (root / lost / "status.json").write_text("[" * 100_000)
    (root / whole / "about.json").write_text("garbage")
    change_about(open_run(root / lost), group="mine")
    for of in (whole, broken, lost):
        page(name, run=[whole, broken, lost], of=of, group="mine")
    table = Index(root).table().set_index("run_id")
    assert table.loc[broken, "settings"] == "config.json cannot be read"
    assert table.loc[lost, "state"] == "LOST"


@pytest.mark.parametrize("name", PAGES)
def test_addresses_with_wrong_values_leave_the_page_usable(page, root, name):
    run_id = recorded(root, 1, "none")
    wrong = "<script>alert(1)</script>"
    keys = ("measure", "x", "logx", "smooth", "seeds", "states", "columns", "archived", "search")
    keys += ("dlayer", "drift", "percentages", "many", "of", "target", "baseline")
    keys += ("sweep_preset",)
    app = page(name, **dict.fromkeys(keys, wrong), run=[wrong, run_id])
    said = texts(app.warning).replace("\\", "")
    for key in {
        "runs_page": ("states", "columns", "archived"),
        "compare_page": ("measure", "x", "logx", "smooth", "target", "baseline"),
        "distributions_page": ("dlayer", "drift", "percentages", "of"),
        "method_page": ("of",),
        "sweeps_page": ("sweep_preset",),
        "paper_page": (),
    }[name]:
        assert f"The address asks for {key} = {wrong}, which cannot be; the page takes" in said
    assert ("names a run that is not here" in said) == (name == "compare_page")
    assert "search" not in said
    app.run()
    assert not app.warning  # it is said once


@pytest.mark.parametrize("name", PAGES)
def test_a_right_address_needs_no_words(page, root, name):
    run_id = recorded(root, 1, "none")
    right = {"smooth": "0.50", "target": "0.9", "logx": "true", "measure": "test loss"}
    right |= {
        "x": "step",
        "drift": "shift of the median",
        "percentages": ["15", "50", "85"],
    }  # defaults
    right |= {"dlayer": "hidden1", "of": run_id, "run": run_id, "dunit": "2", "at_step": "1"}
    assert not page(name, **right).warning


# Runs -------------------------------------------------------------------------------------------


def test_the_table_says_of_each_run_what_is_so(root):
    recorded(root, 1, "none", summary={"test_accuracy": 0.5, "train_loss": 1.25}, device="CPU")
    recorded(root, 2, "batch", State.RUNNING, **alive(), steps_per_s=123.0)
    table = Index(root).table()
    assert list(table["state"]) == ["RUNNING", "COMPLETED"]
    running, ended = table.to_dict("records")
    assert (running["steps_per_s"], ended["test_accuracy"]) == (123.0, 0.5)
    assert ended["settings"] == "Without BN, hidden [3, 5]"
    assert (ended["train_loss"], ended["device"]) == (1.25, "CPU")
    assert ended["submitted"] == pd.Timestamp(1, unit="s", tz="UTC")
    assert ended["progress"] == 2 / 50_000


def test_the_index_follows_every_change(root):
    run_id = recorded(root, 1, "none")
    index = Index(root)
    assert list(index.table()["name"]) == ["figure1-none-abc121"]
    run = open_run(root / run_id)
    change_about(run, name="mine", tags=["a", "b"])
    [row] = index.table().to_dict("records")
    assert (row["name"], row["tags"]) == ("mine", ["a", "b"])
    store.write_status(run.paths, run.status.model_copy(update={"state": State.CANCELLED}))
    assert list(index.table()["state"]) == ["CANCELLED"]
    jobs.delete(run)
    assert index.table().empty


def test_runs_are_found_by_words_state_and_archive(root):
    plain = recorded(root, 1, "none")
    tagged = recorded(root, 2, "batch")
    hidden = recorded(root, 3, "batch", State.PAUSED)
    change_about(open_run(root / tagged), tags=["Sweep"], note="the (best) one")
    change_about(open_run(root / hidden), archived=True)
    table = Index(root).table()

    def found(*arguments):
        return set(table[runs_page.matching(table, *arguments)]["run_id"])

    assert found("", [], False) == {plain, tagged}
    assert found("", [], True) == {plain, tagged, hidden}
    assert found("sweep BEST", [], False) == {tagged}
    assert found("without bn", [], False) == {plain}
    assert found("(best", [], False) == {tagged}
    assert found("nothing", [], False) == set()
    assert found("", ["paused"], True) == {hidden}


def test_the_page_shows_what_matches_and_counts(page, root):
    recorded(root, 1, "none")
    recorded(root, 2, "batch", State.PAUSED)
    app = page("runs_page", search="without")
    assert list(app.dataframe[0].value["name"]) == ["figure1-none-abc121"]
    assert "1 of 2 runs, 0 active." in texts(app.caption)
    app.text_input(key="search").set_value("").run()
    assert list(app.dataframe[0].value["state"]) == ["paused", "completed"]
    app.multiselect(key="columns").set_value(["Name", "Id"]).run()
    assert list(app.dataframe[0].value.columns) == ["name", "run_id"]
    assert all(button.disabled for button in app.button)  # nothing is selected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "x" * 101}, "name: one line of at most 100 characters"),
        ({"name": "a\nb"}, "name: one line"),
        ({"tags": ["x"] * 21}, "tags: at most 20 tags"),
        ({"tags": [""]}, "tags: at most 20 tags, each one line of 1 to 30"),
        ({"note": "x" * 10_001}, "note: at most 10,000 characters"),
    ],
)
def test_what_cannot_be_said_of_a_run_is_refused(root, changes, sentence):
    run = open_run(root / recorded(root, 1, "none"))
    with pytest.raises(StoreError, match=sentence):
        change_about(run, **changes)
    assert not run.paths.about.exists()


def test_what_is_said_of_a_run_is_kept_beside_what_is_not_changed(root):
    run = open_run(root / recorded(root, 1, "none"))
    change_about(run, name="<b>mine</b>", tags=["x"])
    about = change_about(run, note="two\nlines")
    assert about == read_about(run)
    assert (about.name, about.tags, about.note) == ("<b>mine</b>", ("x",), "two\nlines")


# Compare ----------------------------------------------------------------------------------------


def test_curves_steps_and_differences_of_the_chosen_runs(page, root):
    ids = [recorded(root, 1, "none"), recorded(root, 2, "batch", records=5)]
    app = page("compare_page", run=ids)
    curves, sides = charts(app)
    assert [trace["name"] for trace in curves["data"]] == ["Without BN", "With BN"]
    panels = [note["text"] for note in sides["layout"]["annotations"][3:]]
    assert panels == ["Without BN", "With BN"]
    assert sides["layout"]["yaxis2"]["matches"] == "y"
    app.number_input(key="target").set_value(0.82).run()
    steps, differences = (frame.value for frame in app.dataframe)
    assert list(steps["steps"]) == [2, 2]
    assert list(steps["best_accuracy"].round(4)) == [0.82, 0.84]
    assert list(differences["setting"]) == ["model.normalization"]
    app.segmented_control(key="x").set_value("epoch").run()
    curves, _ = charts(app)
    assert curves["layout"]["xaxis"]["title"]["text"] == "epoch"
    app.segmented_control(key="measure").set_value("test loss").run()
    assert not app.exception


# Distributions ----------------------------------------------------------------------------------


def test_drift_bands_and_one_step_of_a_run(page, root):
    run_id = recorded(root, 1, "batch", hidden=(3, 5))
    app = page("distributions_page", of=run_id)
    heat, bands, one = charts(app)
    assert heat["data"][0]["type"] == "heatmap"
    assert bands["layout"]["annotations"][0]["text"] == "With BN: hidden2 unit 2"  # the typical
    assert one["data"][0]["name"] == "With BN"
    app.selectbox(key="dunit").set_value("4").run()
    assert "hidden2 unit 4" in charts(app)[1]["layout"]["annotations"][0]["text"]
    app.selectbox(key="dlayer").set_value("hidden1").run()
    assert not app.exception  # which has no unit 4
    app.toggle(key="many").set_value(True).run()
    assert len(charts(app)) == 4
    app.multiselect(key="percentages").set_value([5, 95]).run()
    assert not app.exception


def test_the_unit_is_chosen_when_there_is_something_to_choose_by(page, root):
    run_id = recorded(root, 1, "none", State.RUNNING, records=0, **alive())
    app = page("distributions_page", of=run_id)
    assert "Nothing is recorded yet" in texts(app.info)
    assert not charts(app)
    assert "dunit" not in app.query_params
    shutil.rmtree(root / run_id)
    recorded(root, 1, "none", State.RUNNING, **alive())
    app.run()
    assert app.selectbox(key="dunit").value == "2"  # the typical one
    assert len(charts(app)) == 3


def test_a_damaged_part_hides_no_other(page, root):
    run_id = recorded(root, 1, "none")
    run = open_run(root / run_id)
    writer = TraceWriter(run.paths, from_step=3)
    grid = np.zeros((5, len(store.GRID_COLUMNS)))
    for step in (3, 4):
        writer.add_percentiles(step, "hidden2", grid[:, 0], grid[:, 0], grid)
    writer.flush()
    first, _ = sorted(run.paths.table("percentiles").iterdir())
    first.write_bytes(b"garbage")
    for name in ("distributions_page", "compare_page"):
        app = page(name, of=run_id, run=run_id, layer="hidden2", unit="1")
        assert f"Cannot read {run.paths.table('percentiles') / first.name}" in texts(
            app.warning
        ).replace("\\", "")
        drawn = [t for f in charts(app) for t in f["data"] if t.get("uid", "").endswith("p50")]
        assert drawn


def test_an_absurd_step_in_the_address_is_no_error(page, root):
    run_id = recorded(root, 1, "none")
    app = page("distributions_page", of=run_id, at_step="9" * 5000)
    assert app.select_slider(key="at_step").value == 0


def test_all_percentiles_of_a_layer_in_one_array(root):
    run = open_run(root / recorded(root, 1, "batch", hidden=(3, 5), records=4))
    steps, grid = run.grid("hidden2")
    assert list(steps) == [0, 1, 2, 3]
    assert grid.shape == (4, 5, len(store.GRID_COLUMNS))
    for unit in range(5):
        rows = run.percentiles("hidden2", unit)
        assert (grid[:, unit] == rows[list(store.GRID_COLUMNS)].to_numpy()).all()


# Sweeps -----------------------------------------------------------------------------------------


def test_a_sweep_is_set_up_started_and_watched(page, root, monkeypatch):
    monkeypatch.setattr(queue, "slots", lambda root: {"cpu": 0, "cuda": 0})
    app = page("sweeps_page")
    assert "There are no sweeps yet" in texts(app.info)
    app.text_input(key="sweep_lr-sweep_optimizer.learning_rate").set_value("0.1, oops").run()
    assert "optimizer.learning_rate = oops" in texts(app.error).replace("\\", "").replace("'", "")
    assert app.button(key="start_sweep").disabled
    app.text_input(key="sweep_lr-sweep_optimizer.learning_rate").set_value("0.1, 1.0").run()
    app.number_input(key="sweep_steps_lr-sweep").set_value(50).run()
    assert app.button(key="start_sweep").label == "Start 4 runs"
    app.button(key="start_sweep").click().run()
    assert not app.exception
    ids = store.list_run_ids(root)
    runs = [open_run(root / run_id) for run_id in ids]
    assert len(runs) == 4
    assert {run.config.training.steps for run in runs} == {50}
    [group] = {read_about(run).group for run in runs}
    assert app.selectbox(key="group").value == group
    assert len(charts(app)) == 1
    assert "0 of 4 runs have ended" in app.main.get("progress")[0].proto.text
    app.button(key="cancel_sweep").click().run()
    assert {run.status.state for run in runs} == {State.CANCELLED}


def test_a_sweep_of_seeds_alone_is_for_the_page_compare(page, root):
    for seed in (1, 2):
        run = open_run(root / recorded(root, seed, "none"))
        store.write_config(run.paths, run.config.replace({"training.seed": seed}))
        change_about(run, group="seeds")
    assert "compare them on the page Compare" in texts(page("sweeps_page", group="seeds").info)


def test_a_damaged_run_does_not_hide_its_sweep(page, root):
    for number, kind in ((1, "none"), (2, "batch"), (3, "batch")):
        change_about(open_run(root / recorded(root, number, kind)), group="mine")
    (root / "20260101-000003-figure1-batch-abc123" / "config.json").write_text("{")
    app = page("sweeps_page", group="<b>other</b>")
    assert app.selectbox(key="group").value == "mine"
    assert "2 of 2 runs have ended" in app.main.get("progress")[0].proto.text


# Paper ------------------------------------------------------------------------------------------


def test_the_papers_figure_is_there_before_ours(page, root, monkeypatch):
    monkeypatch.setattr(queue, "slots", lambda root: {"cpu": 0, "cuda": 0})
    app = page("paper_page")
    [theirs] = charts(app)
    assert {trace.get("legendgroup") for trace in theirs["data"]} == {"paper", None}
    app.button(key="start_figure1").click().run()
    assert not app.exception
    assert len(store.list_run_ids(root)) == 2
    assert len(charts(app)) == 2


def test_ours_stand_beside_the_papers_numbers(page, root):
    for number, kind in ((1, "none"), (2, "batch"), (3, "batch")):
        recorded(root, number, kind, hidden=(100, 100, 100), records=5)
    (root / "20260101-000003-figure1-batch-abc123" / "config.json").write_text("{")
    app = page("paper_page")
    _, ours = charts(app)
    assert {trace["name"] for trace in ours["data"]} >= {"Without BN", "With BN"}
    assert all(trace.get("legendgroup") != "paper" for trace in ours["data"])
    table = app.dataframe[0].value
    assert list(table["step"]) == list(paper.COMPARED_STEPS)
    assert list(table["with BN, the paper"]) == list(paper.accuracy_at("batch"))
    assert table["with BN, ours"].isna().all()  # it has not come so far
