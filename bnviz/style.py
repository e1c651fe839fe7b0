"""One visual language for all figures: colours, lines, axes, and lines of many points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bnviz.downsample import downsample

COLOURS = {
    "batch": ("#0072B2", "#56B4E9", "#004A75", "#8FC7EA"),
    "none": ("#222222", "#7A7A7A", "#4D4D4D", "#A6A6A6"),
}
"""With BN blue, without black, as in the paper; lighter and darker for further runs. They also
differ in lightness and in dash, so they are told apart without colour."""

DASHES = {"batch": "solid", "none": "dash"}
PAPER_COLOUR = "#D55E00"

FONT = "Source Sans Pro, Source Sans, Helvetica, Arial, sans-serif"
GRID_COLOUR = "rgba(128, 128, 128, 0.22)"


def colours(normalizations: Sequence[str]) -> list[str]:
    """A colour for each of these runs."""
    seen = dict.fromkeys(COLOURS, 0)
    chosen = []
    for normalization in normalizations:
        shades = COLOURS[normalization]
        chosen.append(shades[seen[normalization] % len(shades)])
        seen[normalization] += 1
    return chosen


def faint(colour: str, opacity: float = 0.18) -> str:
    """A colour `#RRGGBB` for areas behind lines."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def axis() -> dict[str, Any]:
    """Properties of every axis."""
    return {
        "showline": True,
        "mirror": True,
        "linecolor": "rgba(128, 128, 128, 0.6)",
        "gridcolor": GRID_COLOUR,
        "zeroline": False,
        "ticks": "inside",
        "title_standoff": 6,
        "title_font_size": 13,
    }


def layout(height: int, bottom: int = 84) -> dict[str, Any]:
    """Properties of every figure: paper style, the legend below, zoom that survives updates.

    Args:
        height: in pixels.
        bottom: margin for axis title and legend, which may take two lines on a narrow screen.
    """
    return {
        "template": "none",
        "paper_bgcolor": "white",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"family": FONT, "size": 13, "color": "#222222"},
        "height": height,
        "margin": {"l": 52, "r": 14, "t": 60, "b": bottom},  # above is plotly's toolbar
        "modebar": {"bgcolor": "rgba(0, 0, 0, 0)"},
        "hovermode": "x unified",
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 0,
            "yref": "container",
            "xanchor": "left",
            "yanchor": "bottom",
        },
        "uirevision": "keep",
    }


def add_line(
    figure: go.Figure,
    place: tuple[int, int] | None,
    x: pd.Series[Any],
    y: pd.Series[Any],
    **trace: Any,
) -> tuple[int, int]:
    """Add a line, downsampled where it is long; x ascending, both (n,). Returns how many points
    are drawn, and how many there are."""
    keep = downsample(x, y)
    values = {"x": x.to_numpy()[keep], "y": y.to_numpy()[keep].astype(np.float32), "mode": "lines"}
    subplot = {"row": place[0], "col": place[1]} if place else {}
    figure.add_trace(go.Scatter(**{**values, **trace}), **subplot)
    return len(keep), len(x)
