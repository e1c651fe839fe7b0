import base64
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from bnviz import figures, paper
from bnviz.config import RunConfig
from bnviz.downsample import PLOT_LIMIT
from bnviz.figures import RunData, describe
from bnviz.schema import GRID
from bnviz.style import Drawn


def figure1(*arguments, narrow=False, **options):
    drawn = figures.figure1(*arguments, **options)
    return go.Figure(drawn.figure.data, drawn.narrow) if narrow else drawn.figure


def run_data(label="With BN", normalization="batch", records=5, best=0.95):
    steps = np.arange(records)
    accuracy = np.linspace(0.1, best, records)
    tests = pd.DataFrame({"step": steps, "split": "test", "accuracy": accuracy, "loss": 1.0})
    columns = {f"p{p}": p / 100 + steps for p in GRID}
    percentiles = pd.DataFrame({"step": steps, **columns})
    return RunData(f"run-{label}", label, normalization, "sigmoid", 50_000, tests, percentiles, [])


PLAIN = run_data("Without BN", "none")
NORMALIZED = run_data()


def titles(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def lines(figure, axis):
    return {trace.name: trace for trace in figure.data if trace.xaxis == axis}


def test_panels_are_those_of_the_paper_whatever_the_order_of_the_runs():
    figure = figure1([NORMALIZED, PLAIN], "hidden3", "unit 7")
    assert titles(figure) == [
        "(a) Test accuracy",
        "(b) Without BN: hidden3 unit 7",
        "(c) With BN: hidden3 unit 7",
    ]
    assert figure.layout.yaxis3.matches == "y2"
    assert figure.layout.yaxis2.matches is None


def test_every_number_drawn_is_the_tables():
    figure = figure1([PLAIN, NORMALIZED], "hidden3", "unit 7")
    for axis, run in (("x2", PLAIN), ("x3", NORMALIZED)):
        drawn = lines(figure, axis)
        assert list(drawn) == ["15th percentile", "50th percentile", "85th percentile"]
        for percentage in (15, 50, 85):
            trace = drawn[f"{percentage}th percentile"]
            np.testing.assert_array_equal(trace.x, run.percentiles["step"])
            np.testing.assert_allclose(trace.y, run.percentiles[f"p{percentage}"], rtol=1e-6)
    accuracy = lines(figure, "x")["With BN"]
    np.testing.assert_allclose(accuracy.y, NORMALIZED.tests["accuracy"], rtol=1e-6)


def test_with_and_without_bn_differ_in_colour_and_dash():
    figure = figure1([PLAIN, NORMALIZED], "hidden3", "unit 7")
    plain, normalized = (lines(figure, "x")[name].line for name in ("Without BN", "With BN"))
    assert plain.color != normalized.color
    assert (plain.dash, normalized.dash) == ("dash", "solid")


def revisions(*arguments, **options):
    layout = figure1(*arguments, **options).layout
    return layout.uirevision, layout.yaxis2.uirevision


def test_zoom_and_legend_choices_are_kept_while_points_come():
    grown = replace(PLAIN, percentiles=run_data(records=9).percentiles)
    assert revisions([PLAIN], "hidden1", "unit 0") == revisions([grown], "hidden1", "unit 0")
    assert revisions([PLAIN], "hidden1", "unit 0") == revisions(
        [PLAIN], "hidden1", "unit 0", with_paper=True
    )


def test_a_zoom_into_one_units_panel_does_not_hide_anothers_lines():
    general, axis = revisions([PLAIN], "hidden1", "unit 0")
    for other in (
        revisions([PLAIN], "hidden2", "unit 0"),
        revisions([PLAIN], "hidden1", "unit 1"),
        revisions([PLAIN, NORMALIZED], "hidden1", "unit 0"),
    ):
        assert other[0] == general  # what is hidden in the legend stays hidden
        assert other[1] != axis


def test_each_line_has_a_name_of_its_own_that_stays_when_others_come():
    alone = [trace.uid for trace in figure1([NORMALIZED], "h", "u").data]
    for figure in (
        figure1([PLAIN, NORMALIZED], "h", "u"),
        figure1([NORMALIZED], "h", "u", with_paper=True),
    ):
        uids = [trace.uid for trace in figure.data]
        assert set(alone) < set(uids)
        assert len(set(uids)) == len(uids)


def test_the_axis_names_the_nonlinearity_only_where_all_runs_share_it():
    assert "the sigmoid input" in figure1([PLAIN], "h", "u").layout.yaxis2.title.text
    mixed = [PLAIN, replace(NORMALIZED, nonlinearity="relu")]
    assert "the nonlinearity's input" in figure1(mixed, "h", "u").layout.yaxis2.title.text


def test_the_papers_curves_are_laid_over_each_panel():
    figure = figure1([PLAIN, NORMALIZED], "hidden3", "unit 7", with_paper=True)
    ours = figure1([PLAIN, NORMALIZED], "hidden3", "unit 7")
    added = [t for t in figure.data if t.legendgroup == "paper"]
    assert len(added) == len(figure.data) - len(ours.data) == 2 + 3 + 3
    assert [t.name for t in added if t.showlegend] == ["The paper (digitised)"]
    final = paper.percentile("batch", 85)["value"].iloc[-1]
    assert added[-1].xaxis == "x3"
    assert final in [t.y[-1] for t in added if t.xaxis == "x3"]


def test_the_digitised_paper_is_read_as_stated_in_the_facts():
    assert paper.accuracy("batch")["accuracy"].max() == pytest.approx(0.9815, abs=0.002)
    at = dict(zip(paper.COMPARED_STEPS, paper.accuracy_at("none"), strict=True))
    assert at[4_000] == pytest.approx(0.734, abs=0.003)
    assert at[20_000] == pytest.approx(0.9625, abs=0.002)
    curve = paper.percentile("none", 85)
    assert curve["step"].is_monotonic_increasing
    assert curve["step"].max() == 50_000
    assert curve["value"].iloc[-1] == pytest.approx(1.69, abs=0.02)


def test_a_long_trace_is_thinned_and_says_so():
    long = run_data(records=5_000)
    figure = figure1([long], "hidden3", "unit 7")
    assert all(len(t.x) <= PLOT_LIMIT for t in figure.data)
    drawn = len(figure.data[-1].x)
    assert drawn > 600
    assert figure.layout.xaxis2.title.text == f"step ({drawn:,} of 5,000 points)"


def keys(value):
    if isinstance(value, dict):
        return {*value, *(key for part in value.values() for key in keys(part))}
    return {key for part in value for key in keys(part)} if isinstance(value, list) else set()


def test_the_layout_for_narrow_screens_is_as_plotly_js_has_it():
    """It goes there without plotly.py, which would resolve names such as title_standoff."""
    narrow = figures.figure1([PLAIN, NORMALIZED], "h", "u").narrow
    assert not {key for key in keys(narrow) if key.startswith("title_")}
    assert narrow["xaxis"]["title"] == {"text": "step", "standoff": 6, "font": {"size": 13}}
    assert "percentile" in narrow["yaxis2"]["title"]["text"]


def test_zooming_into_a_panel_brings_its_points_and_no_others():
    long = run_data(records=5_000)
    step = long.percentiles["step"].to_numpy()
    view = (float(step[1000]), float(step[1100]))
    figure = figure1([long], "hidden3", "unit 7", views={"x2": view})
    drawn = lines(figure, "x2")["50th percentile"]
    seen = (drawn.x >= view[0]) & (drawn.x <= view[1])
    np.testing.assert_array_equal(drawn.x[seen], step[1000:1101])
    np.testing.assert_array_equal(drawn.y[seen], long.percentiles["p50"][1000:1101])
    assert figure.layout.xaxis2.title.text == "step (all 101 points in view)"
    assert figure.layout.xaxis.title.text.endswith("of 5,000 points)")
    assert figure.layout.meta == {"thinned": True}
    short = figure1([run_data()], "hidden3", "unit 7", views={"x2": (0.0, 3.0)})
    assert short.layout.xaxis2.title.text == "step"  # nothing is left out of it
    assert short.layout.meta is None


def test_the_accuracy_axis_shows_a_run_that_never_rises():
    assert figure1([NORMALIZED], "h", "u").layout.yaxis.range == (0.7, 1.0)
    assert figure1([run_data(best=0.4)], "h", "u").layout.yaxis.range == (0.0, 1.0)


def test_more_runs_than_panels_are_all_in_the_accuracy_panel():
    figure = figure1([run_data(f"With BN, seed {i}") for i in range(6)], "h", "u")
    assert len(lines(figure, "x")) == 6
    assert len(titles(figure)) == 1 + figures.MAX_PANELS


def test_no_runs_and_no_rows_give_empty_axes():
    empty = figures.not_started(RunConfig())
    for runs in ([], [empty]):
        assert json.loads(figure1(runs, "h", "u").to_json())["layout"]
    assert describe([empty], "h", 3) == "With BN: no points yet."


def test_the_description_tells_the_last_values():
    text = describe([NORMALIZED], "hidden3", 7)
    assert "test accuracy 0.9500 at step 4" in text
    assert "hidden3 unit 7 has 15th, 50th, 85th percentile 4.15, 4.50, 4.85" in text


def test_narrow_figures_have_the_same_traces():
    wide = figure1([PLAIN, NORMALIZED], "h", "u", with_paper=True)
    narrow = figure1([PLAIN, NORMALIZED], "h", "u", with_paper=True, narrow=True)
    assert [(t.name, t.xaxis) for t in wide.data] == [(t.name, t.xaxis) for t in narrow.data]
    assert narrow.layout.height > wide.layout.height


def test_a_changed_learning_rate_is_marked_in_the_panels_of_its_run():
    changed = replace(NORMALIZED, rate_changes=[(3, 0.05)])
    figure = figure1([PLAIN, changed], "hidden3", "unit 7")
    marks = [(shape.x0, shape.xref) for shape in figure.layout.shapes]
    assert marks == [(3, "x"), (3, "x3")]
    assert titles(figure)[3:] == ["lr 0.05", "lr 0.05"]


def decoded(value):
    """Numbers as plotly.js has them."""
    if isinstance(value, dict) and "bdata" in value:
        return np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"]).tolist()
    return value


def test_what_goes_to_the_browser_is_the_checked_figure():
    drawn = figures.figure1([PLAIN, NORMALIZED], "hidden3", "unit 7", with_paper=True)
    sent = json.loads(drawn.to_json())
    checked = json.loads(drawn.figure.to_json(remove_uids=False))
    assert len(sent["data"]) == len(checked["data"]) > 8
    for ours, theirs in zip(sent["data"], checked["data"], strict=True):
        assert {k: decoded(v) for k, v in ours.items()} == {
            k: decoded(v) for k, v in theirs.items()
        }
    assert set(sent["layout"]) >= set(checked["layout"])
    for key, value in checked["layout"].items():
        if isinstance(value, dict):
            given = {k: v for k, v in sent["layout"][key].items() if v is not None}
            assert given == value, key


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 2)),
        np.array([1, None], object),
        np.array([True]),
        np.array(["a"]),
        np.float32(1),
        float("nan"),
    ],
    ids=repr,
)
def test_what_plotly_could_not_draw_is_refused(values):
    with pytest.raises((TypeError, ValueError)):
        Drawn(([{"x": values}], {})).to_json()


def test_large_whole_numbers_stay_what_they_are():
    sent = json.loads(Drawn(([{"x": np.array([2**40, 1])}], {})).to_json())
    assert decoded(sent["data"][0]["x"]) == [2**40, 1]
