"""Section 2's example of a growing bias as a figure. No files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bnviz import style
from bnviz.bias_growth import Trajectory, simulate
from bnviz.style import Drawn


class Way(NamedTuple):
    """How a layer is normalized, and whether the gradient goes through that."""

    scaling: bool
    through: bool


LABELS = {
    Way(False, False): "gradient ignores the centring",
    Way(False, True): "gradient through the centring",
    Way(True, False): "gradient ignores centring and scaling",
    Way(True, True): "gradient through centring and scaling",
}

PANEL_GAP = 0.1
"""Between the two panels, as part of the width or height, for tick labels and titles."""


def simulated(steps: int, learning_rate: float, seed: int, scaling: bool) -> dict[Way, Trajectory]:
    """The paper's example, and with `scaling` that which also divides by the deviation."""
    return {
        way: simulate(steps, learning_rate, seed, scaling=way.scaling, through=way.through)
        for way in LABELS
        if scaling or not way.scaling
    }


def table(trajectories: Mapping[Way, Trajectory], learning_rate: float) -> pd.DataFrame:
    """All steps: normalization, gradient, learning_rate, step, bias, weight, loss."""
    frames = [
        pd.DataFrame(
            {
                "normalization": "centring and scaling" if way.scaling else "centring",
                "gradient": "through it" if way.through else "ignores it",
                "learning_rate": learning_rate,
                "step": np.arange(len(each.bias)),
                **vars(each),
            }
        )
        for way, each in trajectories.items()
    ]
    return pd.concat(frames, ignore_index=True)


def figure(trajectories: Mapping[Way, Trajectory]) -> Drawn:
    """Bias and loss against steps; on narrow screens one below the other."""
    lines = style.lines(["batch" if way.through else "none" for way in trajectories])
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": np.arange(len(values)),
            "y": values,
            "xaxis": f"x{number}",
            "yaxis": f"y{number}",
            "name": LABELS[way],
            "line": line,
            "legendgroup": LABELS[way],
            "showlegend": not number,
            "uid": f"{style.uid(LABELS[way])}-y{number}",
            "hovertemplate": "%{y:.6~g}",
        }
        for (way, each), line in zip(trajectories.items(), lines, strict=True)
        for number, values in (("", each.bias), ("2", each.loss))
    ]
    steps = max(len(each.bias) for each in trajectories.values()) - 1
    return Drawn(go.Figure(traces, _layout(steps, False)), _layout(steps, True))


def _layout(steps: int, narrow: bool) -> dict[str, Any]:
    half = (1 - PANEL_GAP) / 2
    first, second, whole = [0, half], [half + PANEL_GAP, 1], [0, 1]
    layout = style.layout(620 if narrow else 380, bottom=130 if narrow else 104)
    for number, title, across, up in (
        ("", "bias b", whole if narrow else first, second if narrow else whole),
        ("2", "loss", whole if narrow else second, first if narrow else whole),
    ):
        layout[f"xaxis{number}"] = {
            "domain": across,
            "anchor": f"y{number}",
            "range": [0, steps],
            "matches": "x" if number else None,
            "hoverformat": ",d",
            **style.axis("step"),
        }
        layout[f"yaxis{number}"] = {
            "domain": up,
            "anchor": f"x{number}",
            "rangemode": "tozero",
            **style.axis(title),
        }
    return layout


def describe(trajectories: Mapping[Way, Trajectory]) -> str:
    """The figure in words, for those who cannot see it."""
    parts = (
        f"{LABELS[way]}: bias {each.bias[-1]:.4g}, loss from {each.loss[0]:.4g} to "
        f"{each.loss[-1]:.4g}"
        for way, each in trajectories.items()
    )
    return f"After {len(next(iter(trajectories.values())).bias) - 1:,} steps: {'; '.join(parts)}."
