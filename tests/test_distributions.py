import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from bnviz import distributions, drift, style
from bnviz.distributions import (
    Panel,
    bands,
    describe_bands,
    describe_heatmap,
    distribution_at,
    heatmap,
)
from bnviz.downsample import PLOT_LIMIT
from bnviz.schema import GRID, PERCENTILES


def table(records=5, unit=7, shift=0.0):
    """Percentiles that spread over time, one row each 10 steps."""
    steps = np.arange(records)
    columns = {f"p{p}": (shift + (p - 50) * (1 + steps) / 7).astype(np.float32) for p in GRID}
    return pd.DataFrame({"step": steps * 10, "layer": "hidden3", "unit": unit, **columns})


EMPTY = PERCENTILES.empty_table().to_pandas()
LABEL = "With BN: hidden3 unit 7"


def small_multiples(*arguments, **options):
    return distributions.small_multiples(*arguments, **options).figure


def panels(tables, kind="batch"):
    return [Panel(f"unit {unit}", rows, kind, str(unit)) for unit, rows in tables.items()]


def lines(figure, axis):
    return {trace.name: trace for trace in figure.data if trace.xaxis == axis}


def alpha(trace):
    return float(trace.fillcolor.rstrip(")").split(",")[-1])


def titles(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def test_every_percentile_drawn_is_the_tables():
    rows = table()
    figure = bands(rows, LABEL, "batch", GRID, 50)
    assert [trace.uid for trace in figure.data] == [f"p{p}" for p in GRID]
    for trace in figure.data:
        np.testing.assert_array_equal(trace.x, rows["step"])
        np.testing.assert_array_equal(trace.y, rows[trace.uid])
    assert titles(figure) == [LABEL]
    assert figure.layout.xaxis.range == (0, 50)
    assert figure.layout.xaxis.title.text == "step"


def test_areas_lie_between_symmetric_percentages_and_are_darker_inside():
    figure = bands(table(), LABEL, "batch", (85, 15, 25, 75, 50), 50)
    drawn = {trace.name: trace for trace in figure.data}
    assert list(drawn) == [f"{p}th percentile" for p in (15, 25, 50, 75, 85)]
    fills = [(trace.fill, alpha(trace)) for trace in drawn.values()]
    outer, inner = 0.15, pytest.approx(1 - 0.85**2, abs=1e-3)
    assert fills == [
        ("none", 0),
        ("tonexty", outer),
        ("tonexty", inner),
        ("tonexty", inner),
        ("tonexty", outer),
    ]
    assert drawn["50th percentile"].line.width > drawn["15th percentile"].line.width


@pytest.mark.parametrize(
    ("percentages", "filled"),
    [((50,), []), ((15, 50), []), ((15, 85), ["p85"]), ((1, 10, 85, 90), ["p85", "p90"])],
)
def test_a_percentage_without_its_counterpart_is_a_line_alone(percentages, filled):
    figure = bands(table(), LABEL, "none", percentages, 50)
    assert sorted(t.uid for t in figure.data if t.fill == "tonexty") == filled
    assert len(figure.data) == len(percentages)


def test_the_axis_names_what_is_drawn():
    title = bands(table(), LABEL, "batch", (85, 50, 15), 50).layout.yaxis.title.text
    assert title == "15, 50, 85th percentile of the pre-activation"
    title = bands(table(), LABEL, "batch", GRID, 50).layout.yaxis.title.text
    assert title == "15 percentiles from 0 to 100 of the pre-activation"
    assert bands(table(), LABEL, "batch", (1,), 50).data[0].name == "1st percentile"


def test_the_colour_tells_with_from_without_bn():
    for normalization, shades in style.COLOURS.items():
        figure = bands(table(), LABEL, normalization, (15, 85), 50)
        assert {trace.line.color for trace in figure.data} == {shades[0]}
        assert figure.data[1].fillcolor == style.faint(shades[1], 0.15)


def test_a_long_trace_is_thinned_with_its_extremes_and_says_so(rng):
    rows = table(30_000)
    for p in GRID:
        rows[f"p{p}"] = rng.normal(p, 1, len(rows)).astype(np.float32)
    figure = bands(rows, LABEL, "batch", GRID, 300_000)
    drawn = len(figure.data[0].x)
    assert 1_500 < drawn <= PLOT_LIMIT
    assert figure.layout.xaxis.title.text == f"step ({drawn:,} of 30,000 points)"
    by_step = rows.set_index("step")
    for trace in figure.data:
        np.testing.assert_array_equal(trace.x, figure.data[0].x)  # so that hover compares
        np.testing.assert_array_equal(trace.y, by_step.loc[trace.x, trace.uid])
        assert (trace.y.min(), trace.y.max()) == (rows[trace.uid].min(), rows[trace.uid].max())
    assert (trace.x[0], trace.x[-1]) == (0, rows["step"].iloc[-1])


def test_small_multiples_show_each_unit_in_its_panel():
    tables = {unit: table(unit=unit, shift=unit) for unit in (3, 9, 4, 0, 11)}
    figure = small_multiples(panels(tables), "With BN: hidden3", (15, 50, 85), 50, columns=(3, 2))
    label, step, value, *over_panels = titles(figure)
    assert over_panels == [f"unit {unit}" for unit in tables]
    assert label == "With BN: hidden3"
    assert (step, value) == ("step", "15, 50, 85th percentile of the pre-activation")
    for i, (unit, rows) in enumerate(tables.items()):
        drawn = lines(figure, f"x{i + 1}" if i else "x")
        assert list(drawn) == ["15th percentile", "50th percentile", "85th percentile"]
        for p in (15, 50, 85):
            trace = drawn[f"{p}th percentile"]
            assert trace.uid == f"{unit}-p{p}"
            np.testing.assert_array_equal(trace.x, rows["step"])
            np.testing.assert_array_equal(trace.y, rows[f"p{p}"])
    assert len(figure.data) == 15


def test_small_multiples_share_axes_and_label_the_outer_ones():
    tables = {unit: table(unit=unit) for unit in range(5)}
    layout = small_multiples(panels(tables), "h", (15, 85), 50, columns=(3, 2)).layout
    x = [layout[f"xaxis{i or ''}"] for i in ("", 2, 3, 4, 5)]
    y = [layout[f"yaxis{i or ''}"] for i in ("", 2, 3, 4, 5)]
    assert [axis.matches for axis in x] == [None, "x", "x", "x", "x"]
    assert [axis.matches for axis in y] == [None, "y", "y", "y", "y"]
    assert [axis.showticklabels for axis in x] == [False, False, True, True, True]
    assert [axis.showticklabels for axis in y] == [True, False, False, True, False]
    assert "xaxis6" not in layout
    assert all(axis.autorange for axis in y)  # without, plotly.js shows -1 to 4 whatever the data


def test_narrow_small_multiples_differ_in_the_layout_alone():
    tables = {unit: table(600, unit) for unit in range(7)}
    drawn = distributions.small_multiples(panels(tables), "h", (15, 85), 50, columns=(4, 2))
    narrow = go.Figure(drawn.figure.data, drawn.narrow)  # which checks it
    assert narrow.layout.height > drawn.figure.layout.height
    assert drawn.figure.layout.xaxis.domain[1] < 0.25 < narrow.layout.xaxis.domain[1]


def test_up_to_eight_runs_of_a_kind_have_lines_of_their_own():
    for kind in style.COLOURS:
        lines = [(line["color"], line["dash"]) for line in style.lines([kind] * 8)]
        assert len(set(lines)) == 8
        assert {dash for _, dash in lines[:2]} != {dash for _, dash in lines[2:4]}
    assert not set(style.DASHES["batch"]) & set(style.DASHES["none"])


def test_in_print_the_titles_around_panels_stay_within_the_margins():
    drawn = distributions.small_multiples(panels({7: table(), 8: table()}), "h", (50,), 50)
    for look in ("column", "page"):
        figure = style.in_look(drawn, look)
        margin = figure.layout.margin
        outer = [note for note in figure.layout.annotations if note.xref == "paper"]
        assert len(outer) == 3
        for note in outer:
            letters = note.font.size
            assert -margin.l + letters / 2 <= (note.xshift or 0)
            assert -margin.b + letters / 2 <= (note.yshift or 0) <= margin.t - letters / 2
    assert style.in_look(drawn, "screen") is drawn.figure


def test_small_multiples_are_thinned_and_say_so():
    tables = {unit: table(3_000, unit) for unit in range(2)}
    figure = small_multiples(panels(tables), "h", (15, 50, 85), 30_000)
    drawn = max(len(trace.x) for trace in figure.data)
    assert drawn <= PLOT_LIMIT // 2
    assert f"step ({drawn:,} of 3,000 points a panel)" in titles(figure)


def test_each_panel_has_the_colour_of_its_run():
    sides = [Panel(kind, table(), kind, kind) for kind in ("none", "batch")]
    figure = small_multiples(sides, "hidden3 unit 7", (50,), 50)
    assert [trace.line.color for trace in figure.data] == [
        style.COLOURS["none"][0],
        style.COLOURS["batch"][0],
    ]


def test_zooming_in_brings_all_points_that_are_looked_at(rng):
    rows = table(30_000)
    rows["p50"] = rng.normal(size=len(rows)).astype(np.float32)
    view = (100_000.0, 101_000.0)
    inside = rows.query("100000 <= step <= 101000")
    for figure, title in (
        (bands(rows, LABEL, "batch", (50,), 300_000, view), "step (all 101 points in view)"),
        (
            small_multiples(panels({7: rows}), "h", (50,), 300_000, view=view),
            "step (all 101 points in view)",
        ),
    ):
        drawn = pd.Series(figure.data[0].y, figure.data[0].x)
        np.testing.assert_array_equal(drawn.loc[view[0] : view[1]], inside["p50"])
        assert len(drawn) < 400  # beyond, a few
        assert {drawn.index[0], drawn.index[-1]} == {0, rows["step"].iloc[-1]}
        shown = figure.layout.xaxis.title.text
        assert title in (shown, *titles(figure))
        assert figure.layout.meta == {"thinned": True}
    values = rows[["p50"]].to_numpy()
    figure = heatmap(values, rows["step"], "distance", view)
    drawn = pd.Series(figure.data[0].z[0], figure.data[0].x)
    np.testing.assert_array_equal(drawn.loc[view[0] : view[1]], inside["p50"])
    assert figure.layout.xaxis.title.text == "step (all 101 records in view)"
    assert bands(table(), LABEL, "batch", (50,), 50).layout.meta is None


def test_more_units_than_fit_are_refused():
    units = range(distributions.MAX_MULTIPLES)
    assert small_multiples(panels({u: table(unit=u) for u in units}), "h", (50,), 50).data
    with pytest.raises(ValueError, match="at most 24 panels fit into a figure, got 25"):
        small_multiples(panels({u: table() for u in range(25)}), "h", (50,), 50)


def test_the_heatmap_has_each_value_at_its_unit_and_step(rng):
    values, steps = rng.uniform(1, 2, size=(6, 4)), np.arange(6) ** 2
    drawn = heatmap(values, steps, "distance (pre-activation)").data[0]
    np.testing.assert_array_equal(drawn.x, steps)
    np.testing.assert_array_equal(drawn.y, range(4))
    np.testing.assert_array_equal(drawn.z, values.T.astype(np.float32))
    for unit, record in np.ndindex(4, 6):
        assert drawn.customdata[unit][record].tolist() == [unit, steps[record]]
    assert drawn.colorbar.title.text == "distance (pre-activation)"
    assert "unit %{customdata[0]}, step %{customdata[1]:,}, value %{z" in drawn.hovertemplate


def test_colours_diverge_from_0_where_there_are_negative_values():
    steps = [0, 1]
    diverging = heatmap(np.array([[0.0, -3.0], [2.0, np.nan]]), steps, "shift").data[0]
    assert (diverging.zmin, diverging.zmax) == (-3, 3)
    sequential = heatmap(np.array([[0.0, 1.0], [2.0, np.inf]]), steps, "distance").data[0]
    assert (sequential.zmin, sequential.zmax) == (0, 2)
    assert diverging.colorscale != sequential.colorscale
    assert heatmap(np.zeros((2, 2)), steps, "distance").data[0].zmax == 1


@pytest.mark.parametrize("records", [1, 399, 400, 401, 1_000, 1_234, 100_000])
def test_a_long_heatmap_is_thinned_and_says_so(records):
    values = np.arange(2 * records, dtype=float).reshape(records, 2)
    steps = np.arange(records) * 3
    figure = heatmap(values, steps, "distance")
    drawn = figure.data[0]
    columns = len(drawn.x)
    assert columns <= distributions.HEATMAP_LIMIT
    assert columns >= min(records, distributions.HEATMAP_LIMIT // 2)
    assert (drawn.x[0], drawn.x[-1]) == (0, steps[-1])
    np.testing.assert_array_equal(drawn.z[1], values[np.array(drawn.x) // 3, 1])
    thinned = f"step ({columns:,} of {records:,} records)"
    assert figure.layout.xaxis.title.text == (thinned if columns < records else "step")


def test_columns_of_a_heatmap_stay_where_they_are_while_a_run_grows():
    before, after = (
        heatmap(np.zeros((records, 1)), np.arange(records), "distance").data[0].x
        for records in (1_000, 1_010)
    )
    assert set(before[:-1]) <= set(after)


def test_what_moved_is_seen_in_the_heatmap():
    grid = np.stack([table(unit=u)[[f"p{p}" for p in GRID]].to_numpy() for u in range(3)], axis=1)
    measure = drift.MEASURES["spread_change"]
    drawn = heatmap(measure.values(grid, GRID, "relu"), np.arange(5) * 10, measure.label).data[0]
    np.testing.assert_allclose(drawn.z[2], 70 / 7 * np.arange(5), rtol=1e-6)


def test_the_distribution_of_each_run_has_the_stored_percentiles():
    rows = pd.concat([table(shift=shift).iloc[[2]] for shift in (0, 3, 5)])
    labels, kinds = ["a", "b", "c"], ["batch", "none", "batch"]
    figure = distribution_at(rows, labels, kinds)
    assert [trace.name for trace in figure.data] == labels
    for trace, (_, row) in zip(figure.data, rows.iterrows(), strict=True):
        np.testing.assert_array_equal(trace.x, [row[f"p{p}"] for p in GRID])
        np.testing.assert_array_equal(trace.y, np.array(GRID) / 100)
    assert [trace.line.color for trace in figure.data] == [
        line["color"] for line in style.lines(kinds)
    ]
    assert [trace.line.dash for trace in figure.data] == ["solid", "dash", "solid"]
    assert figure.layout.xaxis.title.text == "pre-activation"
    assert figure.layout.yaxis.title.text == "share of examples"


def test_zoom_is_kept_while_points_come_but_not_from_one_unit_to_another():
    def revisions(figure):
        return figure.layout.uirevision, figure.layout.yaxis.uirevision

    first = revisions(bands(table(), LABEL, "batch", (50,), 50))
    assert revisions(bands(table(9), LABEL, "batch", (15, 85), 50)) == first
    other = revisions(bands(table(), "another unit", "batch", (50,), 50))
    assert other[0] == first[0]
    assert other[1] != first[1]
    values = np.ones((3, 2))
    assert revisions(heatmap(values, [0, 1, 2], "a")) == revisions(heatmap(-values, [0, 1, 2], "b"))


def test_nothing_recorded_yet_gives_empty_axes():
    for figure in (
        bands(EMPTY, LABEL, "batch", (15, 50, 85), 50),
        small_multiples([], "h", (15, 50, 85), 50),
        small_multiples(panels({3: EMPTY}), "h", (15, 50, 85), 50),
        heatmap(np.zeros((0, 4)), [], "distance"),
        distribution_at(EMPTY, [], []),
    ):
        assert json.loads(figure.to_json())["layout"]
    assert describe_bands(EMPTY, LABEL, (50,)) == f"{LABEL}: no points yet."
    assert describe_heatmap(np.zeros((0, 4)), [], "distance") == "distance: no points yet."


def test_a_diverging_run_is_drawn_as_far_as_it_went():
    rows = table(3_000)
    rows.loc[2_990:, "p0":] = np.nan
    figure = bands(rows, LABEL, "batch", (15, 50, 85), 30_000)
    assert np.isnan(figure.data[0].y[-1])
    assert 2_989 * 10 >= max(figure.data[0].x[np.isfinite(figure.data[0].y)]) > 29_000
    assert json.loads(heatmap(np.full((2, 3), np.nan), [0, 1], "distance").to_json())["data"]


def test_the_descriptions_tell_the_last_values():
    rows = table()
    text = describe_bands(rows, LABEL, (85, 15, 50))
    assert text == f"{LABEL}: 15, 50, 85th percentile -25.00, 0.00, 25.00 at step 40."
    values = np.array([[9.0, 9, 9, 9], [0.5, -1.25, 4, 0.7]])
    assert describe_heatmap(values, [0, 1_000], "shift (pre-activation)") == (
        "shift (pre-activation) at step 1,000: from -1.25 (unit 1) to 4 (unit 2), median 0.6."
    )
    values[1, :3] = np.nan
    assert describe_heatmap(values, [0, 1], "shift") == (
        "shift at step 1: from 0.7 (unit 3) to 0.7 (unit 3), median 0.7. "
        "Not finite for 3 of 4 units."
    )
    values[1] = np.inf
    assert describe_heatmap(values, [0, 1], "shift") == (
        "shift at step 1: not finite for any unit."
    )
