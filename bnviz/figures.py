"""The paper's figures from tables of numbers. No files, no store: DataFrame in, Figure out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from bnviz import paper, style
from bnviz.config import RunConfig
from bnviz.downsample import View
from bnviz.schema import METRICS, PERCENTILES
from bnviz.style import Drawn

SHOWN_PERCENTAGES = (15, 50, 85)
"""The paper's (Figure 1 b, c): for a Gaussian, the median and about one sigma to each side."""

MAX_PANELS = 4
"""Percentile panels side by side; more would be too narrow to read."""

ACCURACY_FLOOR = 0.7
"""Where the paper's accuracy axis begins; ours goes down to 0 while a chosen run is below it."""


@dataclass(frozen=True)
class RunData:
    """What a figure needs of a run: the evaluations on the test set (of `metrics`), one unit's
    `percentiles`, and where its learning rate was changed."""

    run_id: str
    label: str
    normalization: str
    nonlinearity: str
    steps: int
    tests: pd.DataFrame
    percentiles: pd.DataFrame
    rate_changes: Sequence[tuple[int, float]]


def not_started(config: RunConfig) -> RunData:
    """A run that has no points yet: its empty panel."""
    return RunData(
        "",
        config.label,
        config.model.normalization,
        config.model.nonlinearity,
        config.training.steps,
        METRICS.empty_table().to_pandas(),
        PERCENTILES.empty_table().to_pandas(),
        [],
    )


def figure1(
    runs: Sequence[RunData],
    layer: str,
    unit: str,
    *,
    percentages: Sequence[int] = SHOWN_PERCENTAGES,
    with_paper: bool = False,
    views: Mapping[str, View] = MappingProxyType({}),
) -> Drawn:
    """The paper's Figure 1: (a) test accuracy against steps, then one percentile panel a run.

    The percentile panels share one y axis. Runs without BN come first, as in the paper; at most
    MAX_PANELS runs get a panel. On narrow screens panels are below one another.

    Args:
        runs: what to draw; no runs give empty axes.
        layer, unit: for the panel titles, e.g. "hidden3", "unit 7"; the rows are chosen already.
            A zoom into the percentile panels lasts as long as they stay the same.
        percentages: stored percentages to draw.
        with_paper: lay the digitised curves of the paper over ours.
        views: what is looked at of the axes "x", "x2" and so on, where not all.
    """
    ordered = sorted(runs, key=lambda run: run.normalization != "none")
    panels = ordered[:MAX_PANELS]
    lines = style.lines([run.normalization for run in ordered])
    traces = _paper(panels, percentages) if with_paper else []
    curves = [
        style.line(
            run.tests["step"],
            run.tests["accuracy"],
            views.get("x"),
            name=run.label,
            line=line,
            uid=f"{run.run_id}-accuracy",  # legend choices follow the line when others come and go
            hovertemplate="%{y:.4f} at %{x:,}",  # runs may be evaluated at different steps
            xaxis="x",
            yaxis="y",
        )
        for run, line in zip(ordered, lines, strict=True)
    ]
    traces += [trace for trace, _ in curves]
    # The axis says what is left out of the longest curve.
    points = [max((p for _, p in curves), key=lambda p: p.available, default=style.Points(0, 0))]
    for i, (run, line) in enumerate(zip(panels, lines, strict=False), start=2):
        own, shown = _percentile_lines(run, percentages, line["color"], views.get(f"x{i}"))
        traces += [{**trace, "xaxis": f"x{i}", "yaxis": f"y{i}"} for trace in own]
        points.append(shown)

    titles = [f"({chr(98 + i)}) {run.label}" for i, run in enumerate(panels)]
    what = f"{layer} {unit}"
    marks = list(_event_marks(ordered, lines))
    # Built as a whole: make_subplots and update_xaxes take most of a second for 30 runs.
    wide, narrow = (
        {
            **style.layout(300 * len(points) + 108 if stacked else 444, 108 if stacked else 84),
            "meta": style.meta(points),
            **_axes(ordered, panels, percentages, points, what, stacked),
            "shapes": [mark for mark, _ in marks],
            "annotations": [
                *_titles(["(a) Test accuracy", *titles], what, stacked),
                *(text for _, text in marks),
            ],
        }
        for stacked in (False, True)
    )
    return Drawn((traces, wide), narrow)


def _percentile_lines(
    run: RunData, percentages: Sequence[int], colour: str, view: View | None
) -> tuple[list[dict[str, Any]], style.Points]:
    rows = run.percentiles
    values = [rows[f"p{percentage}"].to_numpy(np.float32) for percentage in percentages]
    kept, points = style.thin(rows["step"], values, view=view)
    traces = [
        {
            "type": "scatter",
            "x": rows["step"].to_numpy()[kept],
            "y": y[kept],
            "mode": "lines",
            "name": f"{percentage}th percentile",
            "line": {"color": colour, "width": 2.2 if percentage == 50 else 1.3},
            "uid": f"{run.run_id}-p{percentage}",
            "hovertemplate": "%{y:.4f}",
            "showlegend": False,
        }
        for percentage, y in zip(percentages, values, strict=True)
    ]
    return traces, points


def _axes(
    runs: Sequence[RunData],
    panels: Sequence[RunData],
    percentages: Sequence[int],
    points: Sequence[style.Points],
    what: str,
    stacked: bool,
) -> dict[str, Any]:
    """x and y axis of each panel, by plotly's names."""
    longest = max((run.steps for run in runs), default=paper.STEPS)
    reached = [run.tests["accuracy"].max() for run in runs if len(run.tests)]
    names = ", ".join(map(str, percentages)) + "th"
    kinds = {run.nonlinearity for run in panels}
    shown_input = f"{kinds.pop()} input" if len(kinds) == 1 else "nonlinearity's input"
    # What the user zoomed or hid stays while new points come (a constant uirevision), but a zoom
    # into one unit's panels must not hide another's lines.
    scene = f"{what} {' '.join(run.run_id for run in panels)}"
    axes: dict[str, Any] = {}
    for i, domain in enumerate(_domains(len(points), stacked)):
        number = "" if i == 0 else i + 1  # as plotly names axes
        axes[f"xaxis{number}"] = {
            "domain": [0, 1] if stacked else domain,
            "anchor": f"y{number}",
            "range": [0, longest],
            "tickformat": "~s",
            "hoverformat": ",d",
            **style.axis(points[i].title("step")),
        }
        title = f"{names} percentile of the {shown_input}" if i == 1 or stacked else ""
        axes[f"yaxis{number}"] = {
            "domain": domain if stacked else [0, 1],
            "anchor": f"x{number}",
            **style.axis(title if i else ""),
        }
        if i == 0:
            floor = 0.0 if min(reached, default=1.0) < ACCURACY_FLOOR else ACCURACY_FLOOR
            axes["yaxis"] |= {"range": [floor, 1.0], "tickformat": ".2~f"}
            continue
        axes[f"yaxis{number}"] |= {
            "autorange": True,
            "matches": "y2" if i > 1 else None,
            "uirevision": scene,
        }
    return axes


def _domains(count: int, stacked: bool) -> list[list[float]]:
    """Where each panel lies, as parts of the figure's width, or of its height from the top."""
    gap = 0.3 / count if stacked else 0.066  # room for ticks and a title
    size = (1 - gap * (count - 1)) / count
    starts = [i * (size + gap) for i in range(count)]
    if stacked:
        starts.reverse()
    return [[start, start + size] for start in starts]


def _titles(titles: Sequence[str], what: str, stacked: bool) -> list[dict[str, Any]]:
    """Above each panel; `what` follows on those of percentiles, on a line of its own where panels
    are narrow."""
    one_line = len(titles) < 4 or stacked
    texts = [titles[0], *(f"{t}{': ' if one_line else '<br>'}{what}" for t in titles[1:])]
    return [
        {
            "text": text,
            "x": 0.5 if stacked else sum(domain) / 2,
            "y": domain[1] if stacked else 1,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "center",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 14 if one_line else 12},
        }
        for text, domain in zip(texts, _domains(len(titles), stacked), strict=True)
    ]


def describe(runs: Sequence[RunData], layer: str, unit: int) -> str:
    """Figure 1 in words, for those who cannot see it."""
    parts = []
    for run in runs:
        tests = run.tests
        if tests.empty:
            parts.append(f"{run.label}: no points yet.")
            continue
        last = tests.iloc[-1]
        text = f"{run.label}: test accuracy {last['accuracy']:.4f} at step {last['step']:,}"
        if len(run.percentiles):
            row = run.percentiles.iloc[-1]
            text += (
                f"; {layer} unit {unit} has 15th, 50th, 85th percentile "
                f"{row['p15']:.2f}, {row['p50']:.2f}, {row['p85']:.2f} at step {row['step']:,}"
            )
        parts.append(text + ".")
    return " ".join(parts)


def _event_marks(
    runs: Sequence[RunData], lines: Sequence[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A vertical line where a learning rate was changed, and the new value beside it: in the
    accuracy panel, and in the run's own where it has one."""
    for i, (run, line) in enumerate(zip(runs, lines, strict=True), start=2):
        for step, value in run.rate_changes:
            for number in ("", i) if i < MAX_PANELS + 2 else ("",):
                axes = {"xref": f"x{number}", "yref": f"y{number} domain"}
                shape = {"color": line["color"], "dash": "dot", "width": 1}
                yield (
                    {
                        "type": "line",
                        "x0": step,
                        "x1": step,
                        "y0": 0,
                        "y1": 1,
                        "line": shape,
                        **axes,
                    },
                    {
                        "text": f"lr {value:g}",
                        "x": step,
                        "y": 0,
                        "xanchor": "left",
                        "yanchor": "bottom",
                        "textangle": -90,
                        "showarrow": False,
                        "font": {"color": line["color"], "size": 11},
                        **axes,
                    },
                )


def _paper(panels: Sequence[RunData], percentages: Sequence[int]) -> list[dict[str, Any]]:
    """The digitised curves, to lie under ours. One legend entry switches all of them.

    They have no hover: their points lie at other steps than ours, whose step the label names.
    """
    curves = [
        (paper.accuracy("batch"), "with BN", "", "solid"),
        (paper.accuracy("none"), "without BN", "", "dash"),
    ]
    for i, run in enumerate(panels, start=2):
        if run.normalization not in paper.SERIES:
            continue
        for percentage in sorted(set(percentages) & set(SHOWN_PERCENTAGES)):
            curve = paper.percentile(run.normalization, percentage)
            curves.append((curve, f"{percentage}th", str(i), "solid"))
    return [
        {
            "type": "scatter",
            "x": curve.iloc[:, 0].to_numpy(),
            "y": curve.iloc[:, 1].to_numpy(),
            "name": f"paper, {name}" if n else "The paper (digitised)",
            "uid": style.uid(f"paper {name} {number}"),
            "legendgroup": "paper",
            "showlegend": n == 0,
            "mode": "lines",
            "line": {"color": style.PAPER_COLOUR, "dash": dash, "width": 1.3},
            "hoverinfo": "skip",
            "xaxis": f"x{number}",
            "yaxis": f"y{number}",
        }
        for n, (curve, name, number, dash) in enumerate(curves)
    ]
