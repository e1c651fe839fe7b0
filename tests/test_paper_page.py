"""Figures 2 to 4 on the page Paper, by Streamlit's own harness."""

import numpy as np
import pandas as pd
import pytest

from bnviz import ensembles, paper, predictions, queue, store, systems
from bnviz.config import RunConfig
from bnviz.predictions import Predictions
from bnviz.presets import find_preset
from bnviz.status import RunError, State
from bnviz.store import open_run
from bnviz.ui import paper_ensemble, paper_runs, paper_systems

from .test_lab import alive, open_script, recorded, texts
from .test_pages import charts

SCRIPT = """
from bnviz.ui import frame, paper_page
with frame.checked_address("paper_page"):
    paper_page.page()
"""


@pytest.fixture
def page(root, monkeypatch):
    monkeypatch.setattr(queue, "slots", lambda root: {"cpu": 0, "cuda": 0})
    return lambda figure, **query: open_script(SCRIPT, figure=figure, **query)


def put(root, number, config, **status):
    kind = config.model.normalization
    return recorded(root, number, kind, settings=config.flat(), **status)


def predict(root, run_id, seed):
    random = np.random.default_rng(seed)
    labels = np.arange(40, dtype=np.int32) % 10
    single, many = random.dirichlet(np.ones(10), (2, 40)).astype(np.float32)
    predictions.write(open_run(root / run_id).paths.predictions,
                      Predictions(4800, 24, labels, single, many))  # fmt: skip


SYSTEMS, MEMBERS = find_preset("figure2").runs, find_preset("figure4").runs


# Which runs there are ---------------------------------------------------------------------------


def test_the_newest_run_of_each_configuration_and_seed_is_found(root):
    first = SYSTEMS["bn-x5"]
    put(root, 1, first)
    newer = put(root, 2, first)
    other = put(root, 3, first.replace({"training.seed": 4}))
    put(root, 4, first.replace({"training.steps": 100}))
    put(root, 5, RunConfig())
    found = paper_runs.find(find_preset("figure2"))
    assert {seed: run.run_id for seed, run in found["bn-x5"].items()} == {0: newer, 4: other}
    assert not any(own for name, own in found.items() if name != "bn-x5")


def test_a_run_that_has_ended_is_not_hidden_by_a_newer_one_that_stopped(root):
    config = SYSTEMS["bn-x5"]
    whole = put(root, 1, config)
    put(root, 2, config, state=State.CANCELLED)
    found = paper_runs.find(find_preset("figure2"))
    assert found["bn-x5"][0].run_id == whole
    diverged = put(root, 3, config, state=State.DIVERGED)
    assert paper_runs.find(find_preset("figure2"))["bn-x5"][0].run_id == diverged


def test_what_is_missing_is_started_or_goes_on(root):
    preset = find_preset("figure2")
    put(root, 1, SYSTEMS["inception"])
    put(root, 2, SYSTEMS["bn-x5"], state=State.DIVERGED)
    stopped = put(root, 3, SYSTEMS["bn-x30"], state=State.CANCELLED)
    put(root, 4, SYSTEMS["bn-baseline"], state=State.RUNNING, **alive())
    missing = paper_runs.missing(preset, paper_runs.find(preset), seeds=1)
    assert list(missing.start) == [
        "figure2-bn-x5-sigmoid", "figure2-inception-x5", "figure2-inception-sigmoid",
    ]  # fmt: skip
    assert [run.run_id for run in missing.resume] == [stopped]
    two = paper_runs.missing(preset, paper_runs.find(preset), seeds=2)
    assert len(two.start) == 3 + 7
    assert two.start["figure2-bn-x5-seed1"] == SYSTEMS["bn-x5"].replace({"training.seed": 1})


def test_members_have_seeds_of_their_own(root):
    preset = find_preset("figure4")
    put(root, 1, MEMBERS["member-3"])
    found = paper_runs.find(preset)
    assert list(found["member-3"]) == [0]
    assert len(paper_runs.missing(preset, found, 1)) == 5


# Figures 2 and 3 --------------------------------------------------------------------------------


def test_one_click_starts_all_systems_as_one_group(page, root):
    app = page("Figures 2 and 3")
    [theirs] = charts(app)
    assert "ImageNet" in theirs["layout"]["annotations"][0]["text"]
    assert "Seven runs of about five minutes each" in texts(app.info)
    button = app.button(key="start_figure2")
    assert button.label == "Start Figure 2"
    button.click().run()
    assert not app.exception
    started = [open_run(root / run_id) for run_id in store.list_run_ids(root)]
    assert {run.config for run in started} == set(SYSTEMS.values())
    groups = {(run.paths.about).read_text() for run in started}
    assert len(groups) == 1
    assert "0 of 7 runs have ended" in [bar.proto.text for bar in app.get("progress")]


def test_several_seeds_are_asked_for_in_the_address(page, root):
    app = page("Figures 2 and 3", paper_seeds="3")
    app.button(key="start_figure2").click().run()
    seeds = [open_run(root / r).config.training.seed for r in store.list_run_ids(root)]
    assert sorted(seeds) == [0] * 7 + [1] * 7 + [2] * 7


def test_our_table_stands_beside_the_papers(page, root):
    for number, (name, config) in enumerate(SYSTEMS.items(), 1):
        state = State.DIVERGED if name == "inception-x5" else State.COMPLETED
        put(root, number, config, state=state)
    app = page("Figures 2 and 3")
    assert "start_figure2" not in {button.key for button in app.button}
    _, ours = charts(app)
    assert [t["name"] for t in ours["data"] if t["mode"] == "lines"] == list(paper.FIGURE_3)
    table = app.dataframe[0].value.set_index("system")
    assert table.loc["BN-x30", "paper_best"] == 0.748
    assert table.loc["BN-x30", "best"] == pytest.approx(0.82)
    assert table.loc["Inception", "paper_steps"] == 31.0
    assert table.loc["Inception", "steps"] == 2
    assert "diverged at step 2" in table.loc["Inception at 5 × the rate", "what"]
    claims = app.dataframe[1].value.set_index("relation")
    assert claims.loc["Without BN, training at 5 times the learning rate fails", "ours"] == "holds"
    assert claims.loc["BN-x30 has the highest accuracy", "ours"] == "does not hold"


def test_failed_runs_are_named_and_can_go_on(page, root):
    error = RunError(type="E", message="no <b>space</b>", traceback="t")
    put(root, 1, SYSTEMS["inception"], state=State.FAILED, error=error)
    app = page("Figures 2 and 3")
    assert "no \\<b\\>space" in texts(app.warning)
    assert app.button(key="start_figure2").label == "Run what is missing (7 runs)"
    assert "1 of them stopped before the end" in texts(app.caption)


def test_the_exported_table_is_the_one_on_the_page(page, root):
    put(root, 1, SYSTEMS["inception"])
    found = paper_runs.find(find_preset("figure2"))
    rows = systems.table(paper_systems.results(found))
    assert rows.set_index("system").loc["Inception", "best"] == pytest.approx(0.82)


# Figure 4 ---------------------------------------------------------------------------------------


def test_one_click_starts_the_six_members(page, root):
    app = page("Figure 4")
    assert list(app.dataframe[0].value["model"]) == list(paper.FIGURE_4["model"])
    app.button(key="start_figure4").click().run()
    started = [open_run(root / run_id).config for run_id in store.list_run_ids(root)]
    assert set(started) == set(MEMBERS.values())
    assert "The first errors stand here when the first run has ended" in texts(app.info)


def test_the_ensemble_stands_there_when_the_last_member_has_ended(page, root):
    ids = [put(root, number, config) for number, config in enumerate(MEMBERS.values(), 1)]
    for number, run_id in enumerate(ids[:5]):
        predict(root, run_id, number)
    app = page("Figure 4")
    assert "5 of 6 members have ended" in texts(app.info)
    assert list(app.dataframe[1].value["model"])[-1] == "mean member"
    predict(root, ids[5], 5)
    app = page("Figure 4")
    ours = app.dataframe[1].value
    members = {name: open_run(root / own).predictions()
               for name, own in zip(MEMBERS, ids, strict=True)}  # fmt: skip
    expected = ensembles.table(members)
    assert list(ours["single_top1"]) == list(expected["top1"])[:8]
    assert list(ours["many_top5"]) == list(expected["top5"])[8:]
    last = ours.set_index("model").loc["ensemble"]
    assert (last["paper_many_top1"], last["paper_many_top5"]) == (0.201, 0.049)
    assert np.isnan(last["paper_single_top1"])
    assert "The ensemble errs in" in texts(app.markdown)


def test_a_member_that_ended_without_predictions_is_named(page, root):
    for number, config in enumerate(MEMBERS.values(), 1):
        run_id = put(root, number, config)
        if number > 1:
            predict(root, run_id, number)
    app = page("Figure 4")
    assert "member\\-1: no class probabilities are stored" in texts(app.warning)


def test_a_damaged_file_is_named(page, root):
    run_id = put(root, 1, MEMBERS["member-1"])
    open_run(root / run_id).paths.predictions.write_bytes(b"PAR1")
    app = page("Figure 4")
    assert "predictions.parquet is damaged" in texts(app.warning).replace("\\", "")


def test_members_of_different_data_make_no_ensemble(page, root):
    ids = [put(root, n, c) for n, c in enumerate(list(MEMBERS.values())[:2], 1)]
    predict(root, ids[0], 0)
    other = open_run(root / ids[0]).predictions()
    moved = Predictions(1, 24, np.roll(other.labels, 1), other.single, other.many)
    predictions.write(open_run(root / ids[1]).paths.predictions, moved)
    assert "These runs make no ensemble" in texts(page("Figure 4").error)


def test_the_reading_says_where_a_relation_does_not_hold():
    def rows(single, many, together):
        errors = {1: (single, together), 24: (many, together)}
        return pd.DataFrame(
            [
                (model, 1, crops, error, 0.0)
                for crops, (mean, ensemble) in errors.items()
                for model, error in (("a", mean), ("mean member", mean), ("ensemble", ensemble))
            ],
            columns=["model", "networks", "crops", "top1", "top5"],
        )

    assert "does not hold" not in paper_ensemble.reading(rows(0.03, 0.02, 0.01))
    assert paper_ensemble.reading(rows(0.03, 0.02, 0.02)).count("**does not hold**") == 1
    assert paper_ensemble.reading(rows(0.01, 0.02, 0.03)).count("**does not hold**") == 2
