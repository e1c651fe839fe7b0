"""Figure 2, the paper's and ours: accuracy of the systems against steps. No files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bnviz import paper, style
from bnviz.comparisons import Curve
from bnviz.style import Drawn
from bnviz.systems import Results, mean, outcome

LINES = {
    "Inception": ("#222222", "dash"),
    "BN-Baseline": ("#0072B2", "dot"),
    "BN-x5": ("#009E73", "solid"),
    "BN-x30": ("#A8457F", "longdash"),
    "BN-x5-Sigmoid": ("#B8860B", "dashdot"),
    "Inception at 5 × the rate": ("#8A8A8A", "dot"),
    "Inception-Sigmoid": ("#8A8A8A", "longdashdot"),
}
"""Colour and dash of each, the same for the paper's curves and for ours."""


SHOWN = (0.85, 1.0)
"""Accuracies of the twin that are drawn at first: what is compared happens here. Always the same,
as another range would undo a zoom; the rise before it is a double click away."""


def theirs() -> Drawn:
    """The paper's Figure 2, digitised: ImageNet."""
    lines = []
    for system in paper.FIGURE_3:
        points = paper.imagenet_accuracy(system)
        if len(points):
            x, y = (points[name].to_numpy(dtype=np.float64) for name in ("step", "accuracy"))
            lines.append(Curve(system, "", system, x, y))
    marks = {
        system: row.steps_to_72_2 for system, row in paper.FIGURE_3.items() if row.steps_to_72_2
    }
    return _figure(
        lines,
        paper.FIGURE_3[paper.BASELINE].best_accuracy,
        marks,
        "The paper: ImageNet, digitised",
        "validation accuracy, single crop",
        (0.4, 0.8),
        32e6,
    )


def ours(curves: Mapping[str, Curve], results: Results, steps: int) -> Drawn:
    """Figure 2 of our runs.

    Args:
        curves: of each system that has any, the mean over its seeds.
        steps: of the whole runs, the end of the axis.
    """
    lines = [curves[system] for system in paper.FIGURE_3 if system in curves]
    bests = [r.best for r in results.get(paper.BASELINE, {}).values() if r.ended and r.best]
    best = mean(bests)
    marks = {
        system: reached
        for system in paper.FIGURE_3
        if (reached := mean(outcome(results, system).steps)) is not None
    }
    return _figure(
        lines,
        best,
        marks,
        "Ours: the small twin",
        "test accuracy",
        SHOWN,
        steps,
    )


def _figure(
    lines: Sequence[Curve],
    best: float | None,
    marks: Mapping[str, float],
    title: str,
    y_title: str,
    y_range: tuple[float, float],
    steps: float,
) -> Drawn:
    """Curves with a diamond where each reaches the baseline's best accuracy."""
    traces: list[dict[str, Any]] = []
    drawn = []
    for c in lines:
        colour, dash = LINES[c.uid]
        uid = style.uid(c.uid)
        if c.low is not None and c.high is not None:
            traces.append(
                {
                    "type": "scatter",
                    "x": np.concatenate([c.x, c.x[::-1]]),
                    "y": np.concatenate([c.high, c.low[::-1]]).astype(np.float32),
                    "fill": "toself",
                    "fillcolor": style.faint(colour),
                    "line": {"width": 0},
                    "mode": "lines",
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "legendgroup": uid,
                    "uid": f"{uid}-band",
                }
            )
        trace, points = style.line(
            pd.Series(c.x),
            pd.Series(c.y),
            name=c.label,
            line={"color": colour, "dash": dash, "width": 2},
            legendgroup=uid,
            uid=uid,
            hovertemplate="%{y:.4f} at %{x:,.0f}",
        )
        traces.append(trace)
        drawn.append(points)
        if best is not None and c.uid in marks:
            traces.append(
                {
                    "type": "scatter",
                    "x": np.array([marks[c.uid]], np.float64),
                    "y": np.array([best], np.float64),
                    "mode": "markers",
                    "marker": {"symbol": "diamond", "size": 11, "color": colour},
                    "hovertemplate": f"{c.uid} reaches %{{y:.4f}} at step %{{x:,.0f}}"
                    "<extra></extra>",
                    "showlegend": False,
                    "legendgroup": uid,
                    "uid": f"{uid}-mark",
                }
            )
    dotted = {"color": style.PAPER_COLOUR, "width": 1, "dash": "dot"}
    ends = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": best, "y1": best}
    heading = {"x": 0.5, "y": 1, "xref": "paper", "yref": "paper", "yanchor": "bottom"}
    layout = {
        **style.layout(460, bottom=110),
        "meta": style.meta(drawn),
        "annotations": [{"text": title, "showarrow": False, "font": {"size": 14}, **heading}],
        "shapes": [] if best is None else [{**ends, "line": dotted}],
        "xaxis": {"range": [0, steps], "tickformat": "~s", **style.axis("step")},
        "yaxis": {"range": list(y_range), **style.axis(y_title)},
        "hovermode": "closest",
    }
    return Drawn((traces, layout))
