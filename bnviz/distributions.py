"""Figures of distributions while they move: a unit, many units, a whole layer, one step. No files.

`percentages` are stored percentages to draw, at least one; `label` names what is drawn, such as
"With BN: hidden3 unit 7", and a zoom along y lasts while it stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from bnviz import style
from bnviz.downsample import PLOT_LIMIT, View, in_view
from bnviz.schema import GRID, GRID_COLUMNS
from bnviz.style import Drawn

MAX_MULTIPLES = 24
"""Small panels of a figure; more would be too small to read."""

MULTIPLE_LIMIT = PLOT_LIMIT // 4
"""Steps drawn in a small panel, which is about a quarter of the page wide."""

HEATMAP_LIMIT = 400
"""Columns of a heatmap, each about two pixels wide on a usual screen."""

BAND_OPACITY = 0.15
"""Of one band. It accumulates where bands lie within one another, so the middle is darkest."""

SEQUENTIAL = "Cividis"  # made for colour vision deficiency (Nuñez et al. 2018)
DIVERGING = "RdBu_r"  # ColorBrewer's, safe for it too: blue below 0, white at 0, red above
MISSING_COLOUR = "#D0D0D0"
"""Behind a heatmap, seen where a value is not finite. Not the white of 0."""

CELL_HEIGHT_PX, FEW_HEIGHT_PX = 130, 340
"""Of a small panel, and of all of them together where they are few."""

PANEL_GAP, PANEL_TITLE_PX = 0.0225, 26
"""Beside a small panel, as part of the width, for tick labels; above it, for its title."""


@dataclass(frozen=True)
class Panel:
    """One of `small_multiples`: a unit or a run, with its rows of the percentiles table, ascending
    by step. The `uid` is its own among them and stays while it is drawn again."""

    title: str
    table: pd.DataFrame
    normalization: str
    uid: str


def bands(
    table: pd.DataFrame,
    label: str,
    normalization: str,
    percentages: Sequence[int],
    steps: int,
    view: View | None = None,
) -> go.Figure:
    """Percentiles of one unit against steps; the area between symmetric ones is filled.

    Args:
        table: rows of the percentiles table of one unit, ascending by step.
        normalization: of `settings.NORMALIZATIONS`, for the colour.
        steps: of the whole run, the end of the axis.
        view: the steps that are looked at, where not all.
    """
    values = [table[f"p{percentage}"] for percentage in percentages]
    kept, points = style.thin(table["step"], values, view=view)
    title = {"x": 0.5, "y": 1, "xref": "paper", "yref": "paper", "yanchor": "bottom"}
    return go.Figure(
        _lines(table.iloc[kept], normalization, percentages, uid=""),
        {
            **style.layout(444, bottom=56),
            "meta": style.meta([points]),
            "annotations": [{"text": label, "showarrow": False, "font": {"size": 14}, **title}],
            "xaxis": {"range": [0, steps], **_step_axis(points.title("step"))},
            "yaxis": {"uirevision": label, **style.axis(_value_title(percentages))},
        },
    )


def small_multiples(
    panels: Sequence[Panel],
    label: str,
    percentages: Sequence[int],
    steps: int,
    *,
    columns: tuple[int, int] = (4, 2),
    view: View | None = None,
) -> Drawn:
    """`bands` of many units, or of one unit in many runs, as small panels which share both axes.

    Args:
        steps: the end of the axis.
        columns: panels side by side, at most, on wide and on narrow screens.
        view: the steps that are looked at, where not all.

    Raises:
        ValueError: more than MAX_MULTIPLES panels.
    """
    count = len(panels)
    if count > MAX_MULTIPLES:
        raise ValueError(f"at most {MAX_MULTIPLES} panels fit into a figure, got {count}")
    limit = max(MULTIPLE_LIMIT, PLOT_LIMIT // (count or 1))
    traces, drawn = [], []
    for i, panel in enumerate(panels):
        values = [panel.table[f"p{percentage}"] for percentage in percentages]
        kept, points = style.thin(panel.table["step"], values, limit, view)
        drawn.append(points)
        number = i + 1 if i else ""  # as plotly names axes
        rows = panel.table.iloc[kept]
        for line in _lines(rows, panel.normalization, percentages, uid=f"{panel.uid}-"):
            traces.append({**line, "xaxis": f"x{number}", "yaxis": f"y{number}"})
    # The axis says what is left out of the panel with the most records.
    most = max(drawn, key=lambda p: p.available, default=style.Points(0, 0))
    title = most.title("step")
    if count > 1:
        title = title.replace("points", "points a panel")
    wide, narrow = (
        {
            **_panel_layout(panels, label, _value_title(percentages), title, steps, at_most),
            "meta": style.meta(drawn),
        }
        for at_most in columns
    )
    return Drawn((traces, wide), narrow)


def _panel_layout(
    panels: Sequence[Panel],
    label: str,
    value_title: str,
    step_title: str,
    steps: int,
    columns: int,
) -> dict[str, Any]:
    """Built as a whole: make_subplots and update_xaxes take most of a second for 24 panels."""
    count = len(panels)
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    cell_height = max(CELL_HEIGHT_PX, FEW_HEIGHT_PX // rows)
    layout = style.layout(cell_height * rows + 110, bottom=56)
    layout["margin"] |= {"l": 64, "t": 54}
    outer = {"xref": "paper", "yref": "paper", "showarrow": False, "font": {"size": 13}}
    layout["annotations"] = [
        {"text": label, "x": 0.5, "y": 1, "yshift": 20, **outer},
        {"text": step_title, "x": 0.5, "y": 0, "yshift": -40, **outer},
        {"text": value_title, "x": 0, "xshift": -52, "textangle": -90, **outer},
    ]
    for i, panel in enumerate(panels):
        number = i + 1 if i else ""  # as plotly names axes
        row, col = divmod(i, columns)
        bottom = rows - row - 1
        layout[f"xaxis{number}"] = {
            "domain": [col / columns, (col + 1) / columns - PANEL_GAP],
            "anchor": f"y{number}",
            "range": [0, steps],
            "matches": "x" if i else None,
            "showticklabels": i + columns >= count,  # the lowest of its column
            "tickfont": {"size": 11},
            **_step_axis(),
        }
        layout[f"yaxis{number}"] = {
            "domain": [bottom / rows, (bottom + 1 - PANEL_TITLE_PX / cell_height) / rows],
            "anchor": f"x{number}",
            "matches": "y" if i else None,
            "autorange": True,  # plotly.js else takes y for fixed, as x is
            "showticklabels": col == 0,
            "tickfont": {"size": 11},
            "uirevision": label,
            **style.axis(),
        }
        layout["annotations"].append(
            {
                "text": panel.title,
                "x": 0.5,
                "y": 1,
                "xref": f"x{number} domain",
                "yref": f"y{number} domain",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 12},
            }
        )
    return layout


def heatmap(
    values: npt.NDArray[np.floating],
    steps: npt.ArrayLike,
    measure_label: str,
    view: View | None = None,
) -> go.Figure:
    """A measure of drift for all units of a layer against steps.

    Where there are negative values the colours diverge from 0, else they run from 0 up. The
    customdata of a cell are [unit, step].

    Args:
        values: shape (records, units), from `bnviz.drift`; what is not finite stays grey.
        steps: of the records, ascending, shape (records,).
        measure_label: with its unit, beside the colours.
        view: the steps that are looked at, where not all.
    """
    records, units = values.shape
    kept = _columns(0, records)
    if view is not None:
        inside = in_view(np.asarray(steps), view)
        kept = np.union1d(kept, _columns(inside.start, inside.stop))
    points = style.count_points(steps, kept, view)
    x, y = np.asarray(steps, dtype=np.int64)[kept], np.arange(units)
    finite = values[np.isfinite(values)]
    limit = float(np.abs(finite).max(initial=0)) or 1.0
    diverging = bool((finite < 0).any())
    figure = go.Figure(
        go.Heatmap(
            x=x,
            y=y,
            z=values[kept].T.astype(np.float32),  # (units, columns)
            customdata=np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1),  # (units, columns, 2)
            colorscale=DIVERGING if diverging else SEQUENTIAL,
            zmin=-limit if diverging else 0,
            zmax=limit,
            colorbar={
                "title": {"text": measure_label, "side": "right", "font": {"size": 13}},
                "thickness": 14,
            },
            hoverongaps=False,
            hovertemplate=(
                "unit %{customdata[0]}, step %{customdata[1]:,}, value %{z:.4~g}<extra></extra>"
            ),
        )
    )
    title = points.title("step").replace("points", "records")
    figure.update_xaxes(showgrid=False, **_step_axis(title))
    figure.update_yaxes(showgrid=False, **style.axis("unit"))
    figure.update_layout(style.layout(444, bottom=56), meta=style.meta([points]))
    figure.update_layout(hovermode="closest", plot_bgcolor=MISSING_COLOUR)
    return figure


def distribution_at(
    rows: pd.DataFrame,
    labels: Sequence[str],
    normalizations: Sequence[str],
    span: tuple[float, float] | None = None,
) -> go.Figure:
    """The whole distribution at one step, as a cumulative distribution for each run.

    The stored percentiles are marked; between them the distribution is taken to be linear.

    Args:
        rows: a row of the percentiles table for each run.
        labels: of the runs, each another.
        normalizations: of `settings.NORMALIZATIONS`, for each run, for colour and dash.
        span: of the x axis, so that it stays while the step changes.
    """
    figure = go.Figure()
    values = rows[list(GRID_COLUMNS)].to_numpy(dtype=np.float32)  # (runs, percentages)
    lines = style.lines(normalizations)
    for quantiles, label, line in zip(values, labels, lines, strict=True):
        figure.add_scatter(
            x=quantiles,
            y=np.array(GRID) / 100,
            name=label,
            uid=style.uid(label),
            mode="lines+markers",
            line=line,
            marker_size=5,
            showlegend=True,
            hovertemplate="%{y:.0%} of examples up to %{x:.6~g}",
        )
    figure.update_xaxes(range=span, **style.axis("pre-activation"))
    figure.update_yaxes(tickformat=".0%", **style.axis("share of examples"))
    figure.update_layout(style.layout(444))
    figure.update_layout(hovermode="closest")
    return figure


def describe_bands(table: pd.DataFrame, label: str, percentages: Sequence[int]) -> str:
    """`bands` in words, for those who cannot see it."""
    if table.empty:
        return f"{label}: no points yet."
    last = table.iloc[-1]
    values = ", ".join(f"{last[f'p{percentage}']:.2f}" for percentage in sorted(percentages))
    return f"{label}: {_names(percentages)} {values} at step {last['step']:,.0f}."


def describe_heatmap(
    values: npt.NDArray[np.floating], steps: npt.ArrayLike, measure_label: str
) -> str:
    """The last record of `heatmap` in words, for those who cannot see it."""
    if not values.size:
        return f"{measure_label}: no points yet."
    last = values[-1]
    subject = f"{measure_label} at step {np.asarray(steps)[-1]:,}"
    known = np.flatnonzero(np.isfinite(last))
    if not len(known):
        return f"{subject}: not finite for any unit."
    least, most = known[np.argmin(last[known])], known[np.argmax(last[known])]
    missing = len(last) - len(known)
    return (
        f"{subject}: from {last[least]:.3g} (unit {least}) to {last[most]:.3g} (unit {most}), "
        f"median {np.median(last[known]):.3g}."
        + (f" Not finite for {missing} of {len(last)} units." if missing else "")
    )


def _columns(start: int, stop: int) -> npt.NDArray[np.int64]:
    """Each k-th record and the last: columns stay where they are while a run grows."""
    stride = max(1, -(-(stop - start - 1) // (HEATMAP_LIMIT - 1)))
    return np.union1d(np.arange(start, stop, stride), np.arange(start, stop)[-1:])


def _lines(
    table: pd.DataFrame, normalization: str, percentages: Sequence[int], uid: str
) -> list[dict[str, Any]]:
    """A line for each percentage, ascending, filled down to the one before.

    Where there are such fills, plotly.js lists the lines in the hover box from the last to the
    first: as they lie.
    """
    colour, fill_colour = style.COLOURS[normalization][:2]
    shown = sorted(percentages)
    lines = []
    for lower, upper in zip([-1, *shown], shown, strict=False):
        around = sum(p <= lower and upper <= 100 - p and 100 - p in shown for p in shown)
        fill = style.faint(fill_colour, round(1 - (1 - BAND_OPACITY) ** around, 3))
        lines.append(
            {
                "type": "scatter",
                "x": table["step"].to_numpy(),
                "y": table[f"p{upper}"].to_numpy(dtype=np.float32),
                "name": _names([upper]),
                "uid": f"{uid}p{upper}",
                "mode": "lines",
                "line": {"color": colour, "width": 2.2 if upper == 50 else 0.8},
                "fill": "tonexty" if around else "none",
                "fillcolor": fill,
                "showlegend": False,
                "hovertemplate": "%{y:.6~g}",  # all that float32 holds
            }
        )
    return lines


def _names(percentages: Sequence[int]) -> str:
    """E.g. "15, 50, 85th percentile"."""
    *others, last = sorted(percentages)
    return ", ".join([*map(str, others), f"{last}{'st' if last == 1 else 'th'} percentile"])


def _value_title(percentages: Sequence[int]) -> str:
    if len(percentages) <= 5:
        return f"{_names(percentages)} of the pre-activation"
    counted = f"{len(percentages)} percentiles from {min(percentages)} to {max(percentages)}"
    return f"{counted} of the pre-activation"


def _step_axis(title: str = "") -> dict[str, Any]:
    return {"tickformat": "~s", "hoverformat": ",d", **style.axis(title)}
