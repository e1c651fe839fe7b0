"""The paper's figures from tables of numbers. No files, no store: DataFrame in, Figure out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bnviz import paper, style
from bnviz.config import RunConfig
from bnviz.downsample import View
from bnviz.schema import EVENTS, METRICS, PERCENTILES

SHOWN_PERCENTAGES = (15, 50, 85)
"""The paper's (Figure 1 b, c): for a Gaussian, the median and about one sigma to each side."""

MAX_PANELS = 4
"""Percentile panels side by side; more would be too narrow to read."""

ACCURACY_FLOOR = 0.7
"""Where the paper's accuracy axis begins; ours goes down to 0 while a chosen run is below it."""


@dataclass(frozen=True)
class RunData:
    """What a figure needs of a run: all rows of `metrics` and `events`, one unit's of
    `percentiles`."""

    run_id: str
    label: str
    normalization: str
    nonlinearity: str
    steps: int
    metrics: pd.DataFrame
    percentiles: pd.DataFrame
    events: pd.DataFrame


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
        EVENTS.empty_table().to_pandas(),
    )


def figure1(
    runs: Sequence[RunData],
    layer: str,
    unit: str,
    *,
    percentages: Sequence[int] = SHOWN_PERCENTAGES,
    with_paper: bool = False,
    stacked: bool = False,
    views: Mapping[str, View] = MappingProxyType({}),
) -> go.Figure:
    """The paper's Figure 1: (a) test accuracy against steps, then one percentile panel a run.

    The percentile panels share one y axis. Runs without BN come first, as in the paper; at most
    MAX_PANELS runs get a panel.

    Args:
        runs: what to draw; no runs give empty axes.
        layer, unit: for the panel titles, e.g. "hidden3", "unit 7"; the rows are chosen already.
            A zoom into the percentile panels lasts as long as they stay the same.
        percentages: stored percentages to draw.
        with_paper: lay the digitised curves of the paper over ours.
        stacked: panels below one another, for narrow screens.
        views: what is looked at of the axes "x", "x2" and so on, where not all.
    """
    ordered = sorted(runs, key=lambda run: run.normalization == "batch")
    panels = ordered[:MAX_PANELS]
    count = 1 + len(panels)
    titles = ["(a) Test accuracy"]
    between = ": " if len(panels) < 3 or stacked else "<br>"  # narrow panels, two lines
    titles += [
        f"({chr(98 + i)}) {run.label}{between}{layer} {unit}" for i, run in enumerate(panels)
    ]
    figure = make_subplots(
        rows=count if stacked else 1,
        cols=1 if stacked else count,
        subplot_titles=titles,
        horizontal_spacing=0.066,  # of the width: room for ticks and a title
        vertical_spacing=0.3 / count,
    )
    figure.update_annotations(font_size=14 if between == ": " else 12)  # the titles
    places = [(i + 1, 1) if stacked else (1, i + 1) for i in range(count)]
    lines = style.lines([run.normalization for run in ordered])
    longest = max((run.steps for run in runs), default=paper.STEPS)

    if with_paper:
        _add_paper(figure, panels, places, percentages)
    floor = ACCURACY_FLOOR
    step_titles: list[str] = []
    for run, line in zip(ordered, lines, strict=True):
        tests = run.metrics[run.metrics["split"] == "test"]
        if len(tests) and tests["accuracy"].max() < ACCURACY_FLOOR:
            floor = 0.0
        points = style.add_line(
            figure,
            places[0],
            tests["step"],
            tests["accuracy"],
            view=views.get("x"),
            name=run.label,
            line=line,
            uid=f"{run.run_id}-accuracy",  # legend choices follow the line when others come and go
            hovertemplate="%{y:.4f} at %{x:,}",  # runs may be evaluated at different steps
        )
        if not step_titles or points.drawn < points.available:
            step_titles = [points.title("step")]
    step_titles = step_titles or ["step"]
    for i, (run, line, place) in enumerate(zip(panels, lines, places[1:], strict=False)):
        rows = run.percentiles
        values = [rows[f"p{percentage}"] for percentage in percentages]
        kept, points = style.thin(figure, rows["step"], values, view=views.get(f"x{i + 2}"))
        step_titles.append(points.title("step"))
        for percentage, y in zip(percentages, values, strict=True):
            figure.add_scatter(
                x=rows["step"].to_numpy()[kept],
                y=y.to_numpy(np.float32)[kept],
                mode="lines",
                name=f"{percentage}th percentile",
                line={"color": line["color"], "width": 2.2 if percentage == 50 else 1.3},
                uid=f"{run.run_id}-p{percentage}",
                hovertemplate="%{y:.4f}",
                showlegend=False,
                row=place[0],
                col=place[1],
            )

    marks = [
        mark
        for run, line, place in itertools.zip_longest(ordered, lines, places[1:])
        if run is not None
        for mark in _event_marks(
            run, line["color"], [places[0], place] if place else [places[0]], stacked
        )
    ]
    # All at once: plotly.py checks the whole list at each addition.
    figure.update_layout(
        shapes=[line for line, _ in marks],
        annotations=[*figure.layout.annotations, *(text for _, text in marks)],
    )

    figure.update_xaxes(range=[0, longest], tickformat="~s", hoverformat=",d", **style.axis())
    figure.update_yaxes(**style.axis())
    figure.update_yaxes(range=[floor, 1.0], tickformat=".2~f", row=1, col=1)
    names = ", ".join(map(str, percentages)) + "th"
    kinds = {run.nonlinearity for run in panels}
    shown_input = f"{kinds.pop()} input" if len(kinds) == 1 else "nonlinearity's input"
    # What the user zoomed or hid stays while new points come (a constant uirevision), but a zoom
    # into one unit's panels must not hide another's lines.
    scene = f"{layer} {unit} {' '.join(run.run_id for run in panels)}"
    for (row, col), title in zip(places, step_titles, strict=True):
        figure.update_xaxes(title_text=title, row=row, col=col)
    for i, (row, col) in enumerate(places[1:]):
        title = f"{names} percentile of the {shown_input}" if not i or stacked else ""
        figure.update_yaxes(
            title_text=title, matches="y2" if i else None, uirevision=scene, row=row, col=col
        )
    height = 300 * count + 108 if stacked else 444
    figure.update_layout(**style.layout(height, bottom=108 if stacked else 84))
    return figure


def describe(runs: Sequence[RunData], layer: str, unit: int) -> str:
    """Figure 1 in words, for those who cannot see it."""
    parts = []
    for run in runs:
        tests = run.metrics[run.metrics["split"] == "test"]
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
    run: RunData, colour: str, places: Sequence[tuple[int, int]], stacked: bool
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A vertical line where the learning rate was changed, and the new value beside it."""
    changes = run.events[run.events["name"] == "learning_rate"]
    for step, value in zip(changes["step"].tolist(), changes["value"].tolist(), strict=True):
        for row, col in places:
            panel = row if stacked else col
            number = panel if panel > 1 else ""  # as plotly names axes
            axes = {"xref": f"x{number}", "yref": f"y{number} domain"}
            line = {"color": colour, "dash": "dot", "width": 1}
            yield (
                {"type": "line", "x0": step, "x1": step, "y0": 0, "y1": 1, "line": line, **axes},
                {
                    "text": f"lr {value:g}",
                    "x": step,
                    "y": 0,
                    "xanchor": "left",
                    "yanchor": "bottom",
                    "textangle": -90,
                    "showarrow": False,
                    "font": {"color": colour, "size": 11},
                    **axes,
                },
            )


def _add_paper(
    figure: go.Figure,
    panels: Sequence[RunData],
    places: Sequence[tuple[int, int]],
    percentages: Sequence[int],
) -> None:
    """The digitised curves, under ours. One legend entry switches all of them.

    They have no hover: their points lie at other steps than ours, whose step the label names.
    """

    def add(curve: pd.DataFrame, name: str, place: tuple[int, int], dash: str, first: bool) -> None:
        figure.add_trace(
            go.Scatter(
                x=curve.iloc[:, 0],
                y=curve.iloc[:, 1],
                name="The paper (digitised)" if first else name,
                uid=style.uid(f"{name} {place}"),
                legendgroup="paper",
                showlegend=first,
                mode="lines",
                line={"color": style.PAPER_COLOUR, "dash": dash, "width": 1.3},
                hoverinfo="skip",
            ),
            row=place[0],
            col=place[1],
        )

    add(paper.accuracy("batch"), "paper, with BN", places[0], "solid", True)
    add(paper.accuracy("none"), "paper, without BN", places[0], "dash", False)
    for run, place in zip(panels, places[1:], strict=False):
        for percentage in set(percentages) & set(SHOWN_PERCENTAGES):
            curve = paper.percentile(run.normalization, percentage)
            add(curve, f"paper, {percentage}th", place, "solid", False)
