"""One visual language for all figures: colours, lines, axes, and lines of many points."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from bnviz.downsample import PLOT_LIMIT, View, downsample

COLOURS = {
    "batch": ("#0072B2", "#56B4E9", "#004A75", "#8FC7EA"),
    "none": ("#222222", "#7A7A7A", "#4D4D4D", "#A6A6A6"),
    "layer": ("#00805B", "#4DB893", "#005C41", "#8AD1B5"),
    "group": ("#A8457F", "#CC79A7", "#7A2C5A", "#E0A8C8"),
    "instance": ("#8A6D00", "#C9A227", "#614D00", "#DCC36B"),
    "batch_renorm": ("#5B4BB5", "#9387DB", "#3E3185", "#BBB3EB"),
    "whitening": ("#8C5A33", "#C08E66", "#633D20", "#D9B898"),
}
"""With BN blue, without black, as in the paper; lighter and darker for further runs."""

DASHES = {
    "batch": ("solid", "longdashdot"),
    "none": ("dash", "dot"),
    "layer": ("longdash", "dashdot"),
    "group": ("dashdot", "longdash"),
    "instance": ("dot", "dash"),
    "batch_renorm": ("longdashdot", "solid"),
    "whitening": ("dash", "dashdot"),
}
"""Of each kind. Two runs of one dash differ in lightness, so that the first four of a kind are told
apart in black and white, and eight in colour; further ones look like these."""

PAPER_COLOUR = "#D55E00"

TEMPLATE = {"data": {"scatter": [{"type": "scatter"}]}}
"""What plotly.py calls "none"."""

FONT = "Source Sans Pro, Source Sans, Helvetica, Arial, sans-serif"
GRID_COLOUR = "rgba(128, 128, 128, 0.22)"


def lines(normalizations: Sequence[str]) -> list[dict[str, Any]]:
    """Colour, dash and width of the line of each of these runs."""
    seen = dict.fromkeys(COLOURS, 0)
    chosen = []
    for normalization in normalizations:
        shades, dashes = COLOURS[normalization], DASHES[normalization]
        n = seen[normalization]
        dash = dashes[(n // 2 + n // 4) % 2]
        chosen.append({"color": shades[n % 4], "dash": dash, "width": 2})
        seen[normalization] += 1
    return chosen


def faint(colour: str, opacity: float = 0.18) -> str:
    """A colour `#RRGGBB` for areas behind lines."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def axis(title: str = "") -> dict[str, Any]:
    """Properties of every axis, as plotly.js has them: some layouts go there as they are."""
    return {
        "title": {"text": title, "standoff": 6, "font": {"size": 13}},
        "showline": True,
        "mirror": True,
        "linecolor": "rgba(128, 128, 128, 0.6)",
        "gridcolor": GRID_COLOUR,
        "zeroline": False,
        "ticks": "inside",
    }


def layout(height: int, bottom: int = 84) -> dict[str, Any]:
    """Properties of every figure: paper style, the legend below, zoom that survives updates.

    Args:
        height: in pixels.
        bottom: margin for axis title and legend, which may take two lines on a narrow screen.
    """
    return {
        "template": TEMPLATE,
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


class Drawn:
    """A figure, with the layout of its own for narrow screens and columns where it has one.

    Args:
        made: plotly.py's figure; or its traces and layout as plotly.js has them, which are checked
            by plotly.py when it is exported (and in tests): that takes half the time of a tick.
    """

    def __init__(
        self,
        made: go.Figure | tuple[list[dict[str, Any]], dict[str, Any]],
        narrow: dict[str, Any] | None = None,
    ) -> None:
        self._made = made
        self.narrow = narrow

    @cached_property
    def figure(self) -> go.Figure:
        return self._made if isinstance(self._made, go.Figure) else go.Figure(*self._made)

    def to_json(self) -> str:
        """For plotly.js: traces with their uid, which tell it which line is which when others come
        and go, the layout, and the one for narrow screens."""
        if isinstance(self._made, go.Figure):
            parts = json.loads(self._made.to_json(remove_uids=False))
        else:
            parts = {"data": self._made[0], "layout": self._made[1]}
        whole = {**parts, "narrow": self.narrow}
        return json.dumps(whole, default=_typed_array, allow_nan=False)


def _typed_array(values: Any) -> dict[str, str]:
    """How plotly.js reads an array of numbers fastest: int32, float32 or float64, (n,)."""
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "if":
        raise TypeError(f"cannot draw {type(values).__name__} {getattr(values, 'dtype', '')}")
    if values.dtype == np.int64:
        ends = np.iinfo(np.int32)
        fits = not len(values) or (ends.min <= values.min() and values.max() <= ends.max)
        values = values.astype(np.int32 if fits else np.float64)
    kind = f"{values.dtype.kind}{values.dtype.itemsize}"
    return {"dtype": kind, "bdata": base64.b64encode(values.tobytes()).decode()}


LOOKS = {"screen": "as on the screen", "column": "paper, one column", "page": "paper, page width"}
"""How a figure that is saved may look."""

PX_PER_INCH, PRINT_DPI = 96, 300

PRINT_WIDTHS = {"column": 3.25, "page": 6.75}
"""Inches, of the two-column style of ICML, where the paper appeared."""

PRINT_FONT = {"family": "Times New Roman, Nimbus Roman, Times, serif", "color": "black"}
PRINT_PX, PRINT_SMALL_PX = 10.6, 9.3  # 8 and 7 points
PRINT_DASHES = {
    "dash": "4px,2px",
    "dot": "1px,2px",
    "longdash": "7px,2px",
    "dashdot": "4px,2px,1px,2px",
    "longdashdot": "7px,2px,1px,2px",
}
PRINT_SCALE = 0.55
"""Of heights and line widths. A figure of 1200 pixels on a screen is half as wide in print."""


def in_look(drawn: Drawn, look: str) -> go.Figure:
    """The figure in one of LOOKS; for print with the size, the letters and the black axes of a
    paper's figures."""
    if look == "screen":
        return drawn.figure
    narrow = drawn.narrow if look == "column" else None
    figure = go.Figure(drawn.figure.data, narrow or drawn.figure.layout)
    for trace in figure.select_traces({"type": "scatter"}):
        trace.line.width = (trace.line.width or 0) * PRINT_SCALE
        trace.line.dash = PRINT_DASHES.get(trace.line.dash)
        trace.marker.size = (trace.marker.size or 0) * PRINT_SCALE
    axis = {
        "linecolor": "black",
        "linewidth": 0.75,
        "tickwidth": 0.75,
        "showgrid": False,
        "ticklen": 3,
        "title_font_size": PRINT_PX,
        "title_standoff": 5,
        "tickfont_size": PRINT_SMALL_PX,
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    for title in (axis.title for axis in figure.select_yaxes()):
        title.text = (title.text or "").partition(" of the ")[0]  # the rest would not fit
    for note in figure.layout.annotations:
        note.font.size = PRINT_PX
        note.xshift, note.yshift = (note.xshift or 0) * 0.75, (note.yshift or 0) * 0.65
    figure.update_traces(
        {"colorbar": {"title_font_size": PRINT_PX, "thickness": 8}}, {"type": "heatmap"}
    )
    margin = figure.layout.margin
    figure.update_layout(
        width=PRINT_WIDTHS[look] * PX_PER_INCH,
        height=figure.layout.height * PRINT_SCALE,
        font={**PRINT_FONT, "size": PRINT_PX},
        legend_font_size=PRINT_PX,
        margin={"l": margin.l * 0.75, "r": 6, "t": margin.t * 0.45, "b": margin.b * 0.65},
    )
    return figure


def uid(text: str) -> str:
    """A trace's identity from a text. plotly.js makes CSS selectors of it."""
    return re.sub(r"\W+", "-", text)


@dataclass(frozen=True)
class Points:
    """How many points of a line are drawn, and how many there are, in the part looked at."""

    drawn: int
    available: int
    view: View | None = None
    thinned: bool = False
    """Whether points are left out, here or outside of the part looked at."""

    def title(self, axis: str) -> str:
        """An axis title that says what is left out."""
        if not self.thinned:
            return axis
        where = " in view" if self.view else ""
        if self.drawn < self.available:
            return f"{axis} ({self.drawn:,} of {self.available:,} points{where})"
        return f"{axis} (all {self.available:,} points{where})"


def thin(
    x: npt.ArrayLike,
    ys: Sequence[npt.ArrayLike],
    limit: int = PLOT_LIMIT,
    view: View | None = None,
) -> tuple[npt.NDArray[np.int64], Points]:
    """Which points to draw of lines with the same x, and how many these are.

    The same for all lines, about `limit` together: hover compares them.

    Args:
        x: ascending, shape (n,).
        ys: the values of each line, each (n,).
        view: the part of x looked at, for its own limit.
    """
    count = len(np.asarray(x))
    kept = np.arange(count)
    if count > limit:
        each = max(10, limit // len(ys))
        kept = reduce(np.union1d, [downsample(x, y, each, view) for y in ys])
    return kept, count_points(x, kept, view)


def count_points(x: npt.ArrayLike, kept: npt.NDArray[np.int64], view: View | None) -> Points:
    """How many of the points are there and how many of them are kept, in the view if there is
    one."""
    positions = np.asarray(x)
    thinned = len(kept) < len(positions)
    if view is None:
        return Points(len(kept), len(positions), None, thinned)
    inside = (positions >= view[0]) & (positions <= view[1])
    return Points(int(inside[kept].sum()), int(inside.sum()), view, thinned)


def line(
    x: pd.Series[Any], y: pd.Series[Any], view: View | None = None, **trace: Any
) -> tuple[dict[str, Any], Points]:
    """A line's trace, downsampled where it is long; x ascending, both (n,)."""
    kept, points = thin(x, [y], view=view)
    values = {"x": x.to_numpy()[kept], "y": y.to_numpy()[kept].astype(np.float32)}
    return {"type": "scatter", "mode": "lines", **values, **trace}, points


def meta(points: Iterable[Points]) -> dict[str, bool] | None:
    """A layout's mark for the page, where a zoom is to bring more points."""
    return {"thinned": True} if any(p.thinned for p in points) else None
