"""The sections of the page Method that check identities and show a growing bias."""

import json

import pandas as pd
import pytest

from bnviz import bias_figures, identity_figures
from bnviz.schema import IDENTITIES
from bnviz.status import State
from bnviz.store import open_run, write_config
from bnviz.trace import TraceWriter

from .conftest import small
from .test_lab import alive, open_script, recorded, texts
from .test_pages import charts


@pytest.fixture
def identities(root):
    def load(run_id):
        script = f"""
from bnviz import store
from bnviz.ui import frame, identities
frame.title("Method")
identities.section(store.open_run(store.default_root() / "{run_id}"))
"""
        return open_script(script)

    return load


def rows(layer="hidden1", steps=(0, 4), **changes):
    """Checks that hold, but for `changes` in the identity output at the last step."""
    values = {"units": 3, "left_out": 0, "error": 1e-15, "error_with_epsilon": 1e-5}
    return [
        {"step": step, "layer": layer, "identity": identity}
        | values
        | (changes if step == steps[-1] and identity == "output" else {})
        for step in steps
        for identity in IDENTITIES
    ]


def checked(root, checks, *arguments, **status):
    run = open_run(root / recorded(root, 1, "batch", *arguments, **status))
    writer = TraceWriter(run.paths)
    for row in checks:
        writer.add_check(**row)
    writer.merge()
    return run


def test_verdicts_are_on_the_largest_error_of_any_layer_and_step():
    checks = [*rows(), *rows("hidden2", error=2e-7, error_with_epsilon=0.5, left_out=1)]
    table = identity_figures.verdicts(pd.DataFrame(checks)).set_index("identity")
    assert list(table["verdict"]) == ["violated"] + ["holds"] * 5
    assert table.loc["output", "error"] == 2e-7
    assert table.loc["output", "where"] == "hidden2, step 4"
    assert table.loc["output", "error_with_epsilon"] == 0.5
    assert identity_figures.left_out(pd.DataFrame(checks)).endswith(
        "at most 1 of 4, in hidden2 at step 4."
    )
    assert identity_figures.left_out(pd.DataFrame(rows())) == ""


def test_what_is_not_a_number_is_no_verdict():
    nan = {"error": float("nan"), "error_with_epsilon": float("nan")}
    table = identity_figures.verdicts(pd.DataFrame(rows(**nan)))
    assert table["verdict"][0] == "not finite"
    assert table["where"][0] == "hidden1, step 4"
    constant = pd.DataFrame(rows(steps=(0,), units=0, left_out=3, **nan))
    assert identity_figures.verdicts(constant)["verdict"][0].startswith("not checked")
    assert "not" not in set(identity_figures.verdicts(constant)["verdict"][1:])


def test_the_figure_has_the_worst_layer_at_each_step():
    checks = pd.DataFrame([*rows(), *rows("hidden2", error=2e-7, error_with_epsilon=0.5)])
    figure = identity_figures.figure(checks, 10)
    lines = {trace.uid: trace for trace in figure.data}
    assert list(lines["output-error"].x) == [0, 4]
    assert list(lines["output-error"].y) == pytest.approx([1e-15, 2e-7])
    assert list(lines["output-error_with_epsilon"].y) == pytest.approx([1e-5, 0.5])
    assert len(lines) == 2 * len(IDENTITIES)
    assert figure.layout.yaxis.type == "log"
    assert "output 2e-07 with ε = 0, 5e-01" in identity_figures.describe(checks)


@pytest.mark.parametrize("state", [State.RUNNING, State.COMPLETED])
def test_checks_are_shown(identities, root, state):
    process = alive() if state is State.RUNNING else {}
    app = identities(checked(root, rows(left_out=2), state, **process).run_id)
    [figure] = charts(app)
    assert len(figure["data"]) == 2 * len(IDENTITIES)
    table = app.dataframe[0].value
    assert set(table["verdict"]) == {"holds"}
    assert "at most 2 of 5" in texts(app.caption).replace("\\", "")


def test_runs_to_which_they_do_not_apply_say_why(identities, root):
    assert "are of batch normalization" in texts(identities(recorded(root, 1, "none")).info)
    run = open_run(root / recorded(root, 2, "batch"))
    write_config(run.paths, small(model__bn_placement="after"))
    app = identities(run.run_id)
    assert "normalizes after the nonlinearity" in texts(app.info)
    assert not charts(app)


def test_runs_without_checks_say_why(identities, root):
    waiting = recorded(root, 1, "batch", State.RUNNING, records=0, **alive())
    assert "Nothing is checked yet" in texts(identities(waiting).info)
    assert "an earlier version of bnviz trained it" in texts(
        identities(recorded(root, 2, "batch")).info
    )


def test_damaged_checks_are_named(identities, root):
    run = checked(root, rows())
    [part] = run.paths.table("checks").iterdir()
    part.write_bytes(b"garbage")
    app = identities(run.run_id)
    assert f"Cannot read {part}" in texts(app.warning).replace("\\", "")
    assert not app.info


@pytest.fixture
def bias(root):
    def load(**query):
        script = """
from bnviz.ui import bias_growth, frame
with frame.checked_address("method"):
    bias_growth.section()
"""
        return open_script(script, **query)

    return load


def test_the_bias_is_computed_as_chosen(bias):
    app = bias(bias_rate="0.5", bias_steps="100")
    [figure] = charts(app)
    names = [trace["name"] for trace in figure["data"] if trace["showlegend"]]
    assert names == ["gradient ignores the centring", "gradient through the centring"]
    assert figure["layout"]["xaxis"]["range"] == [0, 100]
    app.slider(key="bias_steps").set_value(50).run()
    app.toggle(key="bias_scaling").set_value(True).run()
    [figure] = charts(app)
    assert len(figure["data"]) == 8
    assert figure["layout"]["xaxis2"]["range"] == [0, 50]
    assert figure["narrow"]["yaxis"]["domain"][0] > figure["narrow"]["yaxis2"]["domain"][1]


def test_an_impossible_address_is_said(bias):
    said = texts(bias(bias_rate="9", bias_steps="x").warning).replace("\\", "")
    assert "The address asks for bias_rate = 9, which cannot be" in said
    assert "The address asks for bias_steps = x, which cannot be" in said


def test_the_data_of_the_bias_have_every_step():
    trajectories = bias_figures.simulated(20, 0.1, 0, True)
    table = bias_figures.table(trajectories, 0.1)
    assert len(table) == 4 * 21
    last = table.query("normalization == 'centring' and gradient == 'ignores it'").iloc[-1]
    assert (last["step"], last["bias"]) == (20, pytest.approx(2.0))
    assert "bias 2, loss from 1 to 1" in bias_figures.describe(trajectories)
    assert json.loads(bias_figures.figure(trajectories).figure.to_json())["data"]
