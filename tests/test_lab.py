"""The page Lab in each of its states, run by Streamlit's own test harness."""

import json
import os
import time
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from bnviz import jobs, processes, queue, store
from bnviz.config import RunConfig
from bnviz.presets import presets
from bnviz.schema import GRID
from bnviz.status import RunError, State, Status
from bnviz.store import RunPaths
from bnviz.trace import TraceWriter
from bnviz.ui import settings_form

APP = Path(__file__).resolve().parent.parent / "app.py"


@pytest.fixture
def page(root):
    def load(**query):
        app = AppTest.from_file(APP, default_timeout=60)
        for key, value in query.items():
            app.query_params[key] = value
        return app.run()

    return load


def recorded(
    root,
    number,
    kind,
    state=State.COMPLETED,
    records=3,
    hidden=(3, 5),
    settings=MappingProxyType({}),
    **status,
):
    """A run directory as a worker leaves it, without the training."""
    directory = root / f"20260101-00000{number}-figure1-{kind.replace('_', '-')}-abc12{number}"
    directory.mkdir(parents=True)
    paths = RunPaths(directory)
    paths.control.mkdir()
    config = RunConfig().replace(
        {"model.normalization": kind, "model.hidden": list(hidden), **settings}
    )
    store.write_config(paths, config)
    writer = TraceWriter(paths)
    for step in range(records):
        for layer, units in config.model.layers.items():
            values = np.arange(units) + step
            grid = np.outer(1 + np.arange(units), np.linspace(-1, 1, len(GRID))) + step
            writer.add_percentiles(step, layer, values, values, grid)
        writer.add_metrics(
            step=step,
            split="test",
            loss=1.0,
            accuracy=0.8 + step / 100,
            learning_rate=0.1,
            wall_time_s=0.0,
        )
    writer.merge()
    values = {
        "step": max(records - 1, 0),
        "steps": 50_000,
        "submitted_at": 1.0,
        "updated_at": 2.0,
        **status,
    }
    store.write_status(paths, Status(state=state, **values))
    return directory.name


def alive():
    pid, now = os.getpid(), time.time()
    return {
        "pid": pid,
        "pid_started": processes.process_started(pid),
        "boot_id": processes.boot_id(),
        "updated_at": now,
    }


def chart(app):
    """The figure that the chart component was given."""
    [component] = [e for e in app.main.get("bidi_component") if "figure" in e.proto.json]
    return json.loads(json.loads(component.proto.json)["figure"])


def open_script(script, **query):
    """A page, or a part of one, that a script draws, opened with an address."""
    app = AppTest.from_string(script, default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def texts(elements):
    return " ".join(element.value for element in elements)


def start_button(app):
    return app.button(key="start")


def test_an_empty_dashboard_offers_figure_1_and_explains_it(page):
    app = page()
    assert not app.exception
    assert app.button(key="start_figure1").label == "Start Figure 1"
    assert "covariate shift" in texts(app.markdown)
    assert "Two runs of 50,000 steps" in texts(app.caption)


def test_finished_runs_are_shown_as_the_papers_figure(page, root):
    ids = [recorded(root, 1, "none"), recorded(root, 2, "batch")]
    app = page()
    assert not app.exception
    assert set(app.multiselect(key="runs").value) == set(ids)
    titles = [a["text"] for a in chart(app)["layout"]["annotations"]]
    assert titles[1:] == ["(b) Without BN: hidden2 unit 2", "(c) With BN: hidden2 unit 2"]
    assert "Typical unit of hidden2: 2" in texts(app.caption)
    assert all(button.key != f"cancel-{ids[0]}" for button in app.button)


def test_the_papers_curves_lie_in_axes_of_what_they_show_alone(page):
    figure = chart(page())
    assert any(trace.get("legendgroup") == "paper" for trace in figure["data"])
    app = page(preset="cnn")
    assert not any(trace.get("legendgroup") == "paper" for trace in chart(app)["data"])
    assert "what the paper measured" not in texts(app.caption)


def test_layer_unit_and_the_papers_curves_are_chosen(page, root):
    recorded(root, 1, "batch")
    app = page()
    app.selectbox(key="layer").set_value("hidden1").run()
    app.selectbox(key="unit").set_value("1").run()
    app.toggle(key="paper").set_value(True).run()
    assert not app.exception
    figure = chart(app)
    assert figure["layout"]["annotations"][1]["text"] == "(b) With BN: hidden1 unit 1"
    assert any(trace.get("legendgroup") == "paper" for trace in figure["data"])


def test_a_unit_that_the_chosen_layer_lacks_is_dropped(page, root):
    recorded(root, 1, "batch")
    app = page(unit="99", layer="hidden9", run="../../etc", lr="quick")
    assert not app.exception
    assert "not here: ../../etc" in texts(app.warning).replace("\\", "")


def test_starting_running_and_cancel(page, root):
    starting = recorded(root, 1, "none", State.QUEUED, records=0, **alive())
    running = recorded(
        root, 2, "batch", State.RUNNING, steps_per_s=1000.0, eta_s=50.0, device="CPU", **alive()
    )
    app = page()
    assert not app.exception
    assert "Starting: loading PyTorch" in texts(app.caption)
    row = json.dumps([e.proto.text for e in app.main.get("progress")])
    assert "1,000 steps/s" in row
    assert "50 s left" in row
    assert "Number" not in texts(app.caption)
    app.button(key=f"cancel-{running}").click().run()
    assert (root / running / "control" / "cancel").exists()
    assert not (root / starting / "control" / "cancel").exists()
    for run_id in (starting, running):  # nothing stands behind these two
        (root / run_id / "status.json").unlink()


def test_failed_diverged_and_lost_runs_say_what_is_so_and_what_to_do(page, root):
    error = RunError(type="OSError", message="<b>disk</b> full", traceback="Traceback: line 1")
    recorded(root, 1, "batch", State.FAILED, error=error)
    recorded(root, 2, "none", State.DIVERGED, summary={"reason": "the loss is not finite"})
    recorded(root, 3, "none", State.RUNNING, pid=2**22 - 1, pid_started=1.0)
    app = page()
    assert not app.exception
    errors = texts(app.error).replace("\\", "")
    assert "OSError: <b>disk</b> full" in errors
    assert "\\<b\\>" in texts(app.error)  # shown, not rendered
    assert "log.txt" in errors
    assert "its process is gone" in errors
    assert len([b for b in app.button if b.label == "Resume"]) == 2  # a diverged run is at its end
    assert [code.value for code in app.code] == ["Traceback: line 1"]
    assert "Diverged at step 2: the loss is not finite" in texts(app.warning).replace("\\", "")


def test_a_damaged_run_is_named_and_the_others_are_shown(page, root):
    recorded(root, 1, "none")
    broken = recorded(root, 2, "batch")
    (root / broken / "config.json").write_text("{")
    app = page()
    assert not app.exception
    assert "config.json" in texts(app.error).replace("\\", "")
    assert len(chart(app)["layout"]["annotations"]) == 2
    app.button(key=f"delete-{broken}").click().run()
    assert not app.error
    assert jobs.deleted(root) == [broken]


def test_a_run_whose_status_is_damaged_is_shown_and_can_be_resumed(page, root, held):
    run_id = recorded(root, 1, "batch")
    (root / run_id / "status.json").write_text('{"state": "COMPL')
    app = page()
    assert not app.exception
    assert "status.json is not a status file" in texts(app.error).replace("\\", "")
    assert len(chart(app)["layout"]["annotations"]) == 2  # all that was recorded is there
    app.button(key=f"go-{run_id}").click().run()
    assert not app.error
    assert store.open_run(root / run_id).status.state is State.QUEUED


def test_a_run_without_records_does_not_choose_the_unit_of_the_others(page, root):
    error = RunError(type="OSError", message="no", traceback="")
    recorded(root, 1, "none", State.FAILED, records=0, error=error)
    recorded(root, 2, "batch")
    app = page()
    assert not app.exception
    assert chart(app)["layout"]["annotations"][2]["text"] == "(c) With BN: hidden2 unit 2"


def test_before_the_first_record_no_unit_is_drawn_or_named(page, root):
    recorded(root, 1, "batch", State.RUNNING, records=0, **alive())
    app = page()
    figure = chart(app)
    assert figure["layout"]["annotations"][1]["text"] == "(b) With BN: hidden2 unit …"
    (root / "20260101-000001-figure1-batch-abc121" / "status.json").unlink()


def test_runs_of_different_widths_are_shown_for_a_unit_that_all_have(page, root):
    recorded(root, 1, "none", hidden=[3, 9])
    recorded(root, 2, "batch", hidden=[3, 2])
    app = page()
    assert not app.exception
    assert app.selectbox(key="unit").options == ["typical", "0", "1"]
    assert chart(app)["layout"]["annotations"][2]["text"].endswith(("unit 0", "unit 1"))


def test_a_damaged_part_is_named_and_the_rest_is_drawn(page, root):
    run_id = recorded(root, 1, "batch")
    (root / run_id / "metrics" / "part-000009-000009.parquet").write_bytes(b"")
    app = page()
    assert not app.exception
    assert "part-000009-000009.parquet" in texts(app.warning).replace("\\", "")
    assert len(chart(app)["data"]) == 4


def test_what_the_runs_have_in_common_and_the_probe_are_told(page, root):
    recorded(root, 1, "none")
    recorded(root, 2, "batch")
    app = page()
    told = texts(app.caption).replace("\\", "")
    assert "learning rate 0.15, batch size 60, seed 0" in told
    assert "fixed sample of 500 test examples, BN normalizing by that sample's own" in told


@pytest.mark.parametrize("value", [0.0, -1.0, 1e9])
def test_a_learning_rate_that_cannot_be_keeps_start_disabled_and_says_why(page, value):
    app = page()
    app.number_input(key="lr").set_value(value).run()
    assert not app.exception
    assert start_button(app).disabled
    assert app.button(key="start_figure1").disabled
    sentence = texts(app.error).replace("\\", "")
    assert sentence == (
        f"optimizer.learning_rate = {value}: must be a number above 0 and at most 100"
    )


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("steps", 0, "training.steps = 0: must be a whole number from 1 to 100,000,000"),
        ("batch", 1, "needs a batch of at least 2"),
        ("batch", 60_001, "mnist has 60,000 training examples; choose at most 60,000"),
        ("seed", -1, "training.seed = -1"),
        ("init_std", 11.0, "model.init_std = 11.0: must be a number above 0 and at most 10"),
    ],
)
def test_other_settings_that_cannot_be(page, key, value, sentence):
    app = page()
    app.number_input(key=key).set_value(value).run()
    assert not app.exception
    assert start_button(app).disabled
    assert sentence in texts(app.error).replace("\\", "")


@pytest.fixture
def submitted(monkeypatch):
    """Configurations that were submitted; nothing is started."""
    configs = []

    def submit_all(named, root, group=""):
        configs.extend(config for _, config in named)
        return [f"20260101-00000{len(configs) - i}-test-abcdef" for i in range(len(named))]

    monkeypatch.setattr(jobs, "submit_all", submit_all)
    return configs


def test_what_is_typed_just_before_the_click_is_what_starts(page, submitted):
    app = page()
    app.number_input(key="steps").set_value(10)
    start_button(app).click().run()  # the value and the click arrive together
    assert [config.training.steps for config in submitted] == [10, 10]


def test_a_wrong_value_typed_just_before_the_click_starts_nothing(page, submitted):
    app = page()
    app.number_input(key="lr").set_value(1e9)
    start_button(app).click().run()
    assert submitted == []
    assert "at most 100" in texts(app.error)


def test_batch_1_is_fine_without_bn(page):
    app = page()
    app.number_input(key="batch").set_value(1).run()
    app.segmented_control(key="bn").set_value("Without").run()
    assert not start_button(app).disabled
    assert start_button(app).label == "Start"


def test_slider_and_field_follow_each_other(page):
    app = page()
    app.select_slider(key="lr_slider").set_value(0.5).run()
    assert app.number_input(key="lr").value == 0.5
    app.number_input(key="lr").set_value(0.012).run()
    assert app.select_slider(key="lr_slider").value == 0.01
    assert app.number_input(key="lr").value == 0.012


def test_a_root_that_cannot_be_written_is_answered_on_the_page(page, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BNVIZ_ROOT", str(tmp_path / "file"))
    app = page()
    app.button(key="start").click().run()
    assert not app.exception
    assert "cannot write runs to" in texts(app.error).replace("\\", "")


@pytest.fixture
def held(monkeypatch):
    """Nothing is started: runs stay in the queue."""
    monkeypatch.setattr(queue, "_start", lambda run: None)
    monkeypatch.setattr(queue, "slots", lambda root: {"cpu": 0, "cuda": 0})


def open_more(app, run_id):
    app.session_state[f"more-{run_id}"] = True
    app.run()


def click(app, action, run_id):
    if action in ("retry", "copy", "delete"):
        open_more(app, run_id)
    app.button(key=f"{action}-{run_id}").click().run()
    app.run()  # the rest of the page follows
    assert not app.exception
    return app


def test_waiting_runs_show_their_place_and_can_be_paused_resumed_and_cancelled(page, root, held):
    ids = [jobs.submit(RunConfig(), root, f"r{i}") for i in range(3)]
    app = page(run=ids[2])
    assert "Number 3 in line" in texts(app.caption)
    click(app, "go", ids[2])
    assert store.open_run(root / ids[2]).status.state is State.PAUSED
    click(app, "go", ids[2])
    assert "Number 3 in line" in texts(app.caption)
    click(app, "cancel", ids[2])
    assert store.open_run(root / ids[2]).status.state is State.CANCELLED
    assert "Number" not in texts(app.caption)


def test_a_deleted_run_comes_back_with_undo(page, root):
    ids = [recorded(root, 1, "none"), recorded(root, 2, "batch")]
    app = page()
    click(app, "delete", ids[1])
    assert store.list_run_ids(root) == [ids[0]]
    assert f"Deleted {ids[1]}" in texts(app.info)
    app.button(key="undo").click().run()
    assert set(app.multiselect(key="runs").value) == set(ids)
    assert "Deleted" not in texts(app.info)
    click(app, "delete", ids[0])
    app.button(key="empty_trash").click().run()
    assert jobs.deleted(root) == []


def test_started_again_the_new_run_is_shown_beside(page, root, held):
    run_id = recorded(root, 1, "batch")
    app = page()
    click(app, "retry", run_id)
    shown = app.multiselect(key="runs").value
    assert shown[0] == run_id
    assert store.open_run(root / shown[1]).config == store.open_run(root / run_id).config


def test_initial_weights_with_a_std_of_their_own(page, root, held):
    app = page(init="he", nonlinearity="elu")
    assert app.number_input(key="init_std").disabled
    app.button(key="start").click().run()
    assert not app.exception
    started = [store.open_run(root / r).config.model for r in store.list_run_ids(root)]
    assert {(m.initialization, m.nonlinearity) for m in started} == {("he", "elu")}
    assert "init std" not in texts(app.caption)
    app.selectbox(key="init").set_value("gaussian").run()
    assert not app.number_input(key="init_std").disabled


def test_started_again_with_one_setting_changed(page, root, held):
    run_id = recorded(root, 1, "none")
    before = store.open_run(root / run_id).config
    app = page()
    open_more(app, run_id)
    start, rate = f"start-changed-{run_id}", f"to-{run_id}-optimizer.learning_rate"
    assert app.button(key=start).disabled  # nothing is changed yet
    assert app.text_input(key=rate).label == "instead of 0.15"
    for wrong in ("1000", "fast", "-1"):
        app.text_input(key=rate).set_value(wrong).run()
        assert "must be a number above 0 and at most 100" in texts(app.error).replace("\\", "")
        assert app.button(key=start).disabled
    app.text_input(key=rate).set_value("0.5").run()
    app.button(key=start).click().run()
    app.run()
    assert not app.exception
    [new] = [r for r in store.list_run_ids(root) if r != run_id]
    changed = {"optimizer.learning_rate": 0.5}
    assert store.open_run(root / new).config == before.replace(changed)
    assert app.multiselect(key="runs").value == [run_id, new]
    app.selectbox(key=f"change-{run_id}").set_value("model.nonlinearity").run()
    app.text_input(key=f"to-{run_id}-model.nonlinearity").set_value("tan").run()
    assert "must be one of sigmoid, relu" in texts(app.error).replace("\\", "")


def test_settings_are_copied_to_the_controls(page, root, submitted):
    run_id = recorded(root, 1, "none")
    app = page()
    app.number_input(key="lr").set_value(0.7).run()
    click(app, "copy", run_id)
    assert app.number_input(key="lr").value == 0.15
    assert app.segmented_control(key="bn").value == "Without"
    assert app.text_input(key="hidden").value == "3, 5"
    start_button(app).click().run()
    assert submitted == [store.open_run(root / run_id).config]


def test_a_data_set_that_is_not_here_is_offered_and_nothing_starts(page, tmp_path, monkeypatch):
    monkeypatch.setenv("BNVIZ_CACHE", str(tmp_path / "cache"))
    app = page(dataset="fashion_mnist", pixels="grey")
    assert not app.exception
    assert start_button(app).disabled
    sentence = texts(app.error).replace("\\", "")
    assert "Fashion-MNIST is not here yet; download it with python -m bnviz fetch" in sentence
    assert app.button(key="fetch-fashion_mnist").label == "Download Fashion-MNIST"
    app.text_input(key="folder").set_value(str(tmp_path)).run()
    assert "the files of Fashion-MNIST are not in there" in texts(app.error).replace("\\", "")
    app.selectbox(key="dataset").set_value("synthetic").run()
    assert not start_button(app).disabled
    assert not app.error


def test_a_folder_without_images_starts_nothing(page, root, tmp_path):
    app = page(dataset="folder", pixels="colour")
    assert "data.folder is empty: name the folder" in texts(app.error).replace("\\", "")
    app.text_input(key="folder").set_value(str(tmp_path / "photos")).run()
    assert not app.error
    start_button(app).click().run()
    assert "there is no folder" in texts(app.error).replace("\\", "")
    assert not root.exists() or store.list_run_ids(root) == []
    assert "folder" not in app.query_params  # a path of this machine is not for others


def test_every_setting_has_a_control():
    assert set(settings_form.CONTROLS) == set(RunConfig().flat())
    keys = [control.key for control in settings_form.CONTROLS.values()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", presets())
def test_a_preset_starts_what_its_file_says(page, submitted, name):
    app = page(preset="lr-sweep" if name == "figure1" else "figure1")
    app.number_input(key="seed").set_value(7).run()  # is gone with the choice of a preset
    app.selectbox(key="preset").set_value(name).run()
    assert not app.exception
    if name.startswith("imagenet"):
        assert texts(app.error).replace("\\", "").startswith("data.folder is empty")
        assert start_button(app).disabled
        return
    start_button(app).click().run()
    assert submitted == list(presets()[name].runs.values())


def test_each_control_reaches_the_run_and_the_address(page, submitted):
    app = page(network="cnn", channels="4, 6", normalization="group", groups="2", schedule="cosine")
    app.text_input(key="hidden").set_value("12").run()
    app.selectbox(key="optimizer").set_value("adam").run()
    app.number_input(key="dropout").set_value(0.25).run()
    assert not app.exception
    assert app.number_input(key="momentum").disabled
    start_button(app).click().run()
    plain, grouped = submitted
    assert (plain.model.normalization, grouped.model.normalization) == ("none", "group")
    for config in submitted:
        assert config.model.layers == {"conv1": 4, "conv2": 6, "hidden1": 12}
        assert config.model.dropout == 0.25
        assert (config.optimizer.kind, config.optimizer.schedule) == ("adam", "cosine")
    assert grouped.model.groups == 2


def test_the_name_of_a_run_tells_its_normalization(page, monkeypatch):
    names = []

    def submit_all(named, root, group):
        names.extend(name for name, _ in named)
        return names

    monkeypatch.setattr(jobs, "submit_all", submit_all)
    app = page(normalization="whitening", network="cnn", per="activation")
    start_button(app).click().run()
    assert not app.exception
    assert names == ["figure1-without-bn", "figure1-whitening"]


@pytest.mark.parametrize("typed", ["", "100,,100", "many", "100, -3", "5000"])
def test_layers_that_cannot_be_are_answered_in_words(page, typed):
    app = page()
    app.text_input(key="hidden").set_value(typed).run()
    assert not app.exception
    assert start_button(app).disabled
    sentence = texts(app.error).replace("\\", "")
    assert "model.hidden" in sentence
    assert "must be a list of 1 to 20 whole numbers from 1 to 4,096" in sentence


def test_the_learning_rate_of_a_running_run_is_changed(page, root):
    run_id = recorded(root, 1, "batch", State.RUNNING, **alive())
    app = page()
    open_more(app, run_id)
    app.number_input(key=f"rate-{run_id}").set_value(0.02)
    app.button(key=f"set-{run_id}").click().run()
    assert (root / run_id / "control" / "learning_rate").read_text() == "0.02"
    app.number_input(key=f"rate-{run_id}").set_value(-1.0)
    app.button(key=f"set-{run_id}").click().run()
    app.run()
    assert (root / run_id / "control" / "learning_rate").read_text() == "0.02"
    (root / run_id / "status.json").unlink()


def test_a_run_that_hangs_or_was_paused_by_the_system_says_so(page, root):
    hanging = recorded(root, 1, "none", State.RUNNING, **alive() | {"updated_at": 1.0})
    recorded(root, 2, "batch", State.PAUSED, reason="No space left on device: make space")
    app = page()
    warnings = texts(app.warning).replace("\\", "")
    assert "No sign of life for" in warnings
    assert "Paused: No space left on device: make space." in warnings
    (root / hanging / "status.json").unlink()


def test_more_runs_at_once_are_set_on_the_page(page, root):
    recorded(root, 1, "none")
    app = page()
    app.number_input(key="slots-cpu").set_value(7).run()
    assert queue.slots(root)["cpu"] == 7


def test_a_dashboard_that_others_can_reach_says_so(page, monkeypatch):
    import streamlit

    assert "other machines" not in texts(page().warning)
    original = streamlit.get_option
    monkeypatch.setattr(
        streamlit,
        "get_option",
        lambda name: "0.0.0.0" if name == "server.address" else original(name),
    )
    assert "can be reached from other machines" in texts(page().warning)


def test_an_address_controls_nothing(page, root):
    """A link that someone else made may set controls; it must not act."""
    name = recorded(root, 1, "none", State.RUNNING, step=20, **alive())
    before = (root / name / "status.json").read_text()
    actions = ("cancel", "go", "retry", "delete", "set", "copy")
    keys = ["start", "start_figure1", "undo", "empty_trash", *(f"{a}-{name}" for a in actions)]
    app = page(**dict.fromkeys(keys, "true"), slots="9", run=name)
    assert not app.exception
    assert [path.name for path in root.iterdir() if path.is_dir()] == [name]
    assert list((root / name / "control").iterdir()) == []
    assert (root / name / "status.json").read_text() == before
    assert not (root / ".slots").exists()


def test_a_hanging_run_can_be_cancelled_though_that_was_asked_before(page, root):
    hanging = {**alive(), "updated_at": time.time() - 95}
    name = recorded(root, 1, "none", State.RUNNING, step=20, **hanging)
    (root / name / "control" / jobs.CANCEL).touch()
    app = page()
    assert not app.button(key=f"cancel-{name}").disabled
    assert "No sign of life" in texts(app.warning)
    # This very process: it is no worker, so cancelling does not kill it.
    assert f"End process {os.getpid()}" in texts(app.warning)


def test_why_nothing_starts_is_said(page, root, monkeypatch):
    monkeypatch.setattr(queue, "MIN_FREE_BYTES", 10**18)
    jobs.submit(RunConfig(), root, "waits")
    app = page()
    assert "Number 1 in line, but the disk has" in texts(app.caption).replace("\\", "")


def test_another_run_whose_parts_have_the_same_names_is_drawn(page, root):
    """The chart is kept while nothing is new; another run is new, whatever its files are called."""
    first, second = recorded(root, 1, "batch"), recorded(root, 2, "none")
    app = page(run=first)
    assert chart(app)["data"][0]["name"] == "With BN"
    app.multiselect(key="runs").set_value([second]).run()
    assert chart(app)["data"][0]["name"] == "Without BN"
