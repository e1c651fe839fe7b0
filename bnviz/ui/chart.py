"""The live chart: a component that keeps one Plotly chart and updates it in place.

Streamlit's own `st.plotly_chart` is replaced by each new figure and loses zoom and hover.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import plotly
import streamlit as st

from bnviz import style, tables
from bnviz.downsample import View
from bnviz.plots import Plot, Views
from bnviz.store import Run

_HERE = Path(__file__).resolve().parent
_STATIC = _HERE.parent.parent / "static"  # where Streamlit serves files from, beside app.py

_HTML = """
<div class="bnviz-chart">
  <div class="plot" role="figure" aria-label="chart"></div>
  <div class="save">Save the figure as
    <button type="button" data-format="png">PNG</button>
    <button type="button" data-format="svg">SVG</button>
  </div>
</div>
"""

_CSS = """
.bnviz-chart { width: 100%; }
.bnviz-chart .plot { width: 100%; min-height: 300px; }
.bnviz-chart .save { font-size: 0.875rem; color: var(--st-text-color); opacity: 0.85; }
.bnviz-chart .save button {
  font: inherit; color: inherit; background: transparent; cursor: pointer;
  border: 1px solid var(--st-border-color); border-radius: 0.4rem; padding: 0.1rem 0.6rem;
}
.bnviz-chart .save button:hover {
  border-color: var(--st-primary-color); color: var(--st-primary-color);
}
.bnviz-chart .save button:focus-visible { outline: 2px solid var(--st-primary-color); }
"""


_component = st.components.v2.component(
    "bnviz_chart",
    html=_HTML,
    css=_CSS,
    js=(_HERE / "chart.js").read_text(encoding="utf-8"),
    isolate_styles=False,  # plotly.js puts its own styles into the page, not into a shadow root
)


Build = Callable[[Views], Plot]
"""Makes a figure for what is looked at."""


@dataclass(frozen=True)
class Drawing:
    """A figure ready to be sent to the browser."""

    figure: str  # JSON
    saved: str  # JSON of the figure as it is saved, where that is another
    alt: str
    filename: str
    origin: str  # JSON, for the metadata of saved images


def live(
    key: str,
    version: tuple[Any, ...],
    build: Build,
    runs: Sequence[Run],
    filename: str,
    on_click: Callable[[list[float]], None] | None = None,
    with_paper: bool = False,
) -> None:
    """Show a figure of some runs; called again, update it where there is something new to draw.

    Args:
        key: of the chart, on all pages.
        version: changes when, and only when, the figure does; the zoom is no part of it.
        filename: of saved images, without extension.
        on_click: called with the customdata of a point that is clicked.
        with_paper: the figure has the paper's curves, too.
    """
    views, look = _views(key), st.session_state.get("look", "screen")
    now = (version, filename, tuple(sorted(views.items())), look)
    kept = st.session_state.setdefault("charts", {})
    if kept.get(key, (None,))[0] != now:
        plot = build(views)
        origin = tables.origin(runs, with_paper=with_paper)
        kept[key] = now, _drawing(plot, filename, look, origin)
    _show(kept[key][1], views, key, on_click)


def _drawing(plot: Plot, filename: str, look: str, origin: dict[str, Any]) -> Drawing:
    saved = "" if look == "screen" else style.in_look(plot.drawn, look).to_json()
    return Drawing(plot.drawn.to_json(), saved, plot.alt, filename, json.dumps(origin))


def _views(key: str) -> dict[str, View]:
    """What the browser says is looked at, as far as it can be."""
    said = getattr(st.session_state.get(key), "view", None)
    views: dict[str, View] = {}
    for axis, ends in said.items() if isinstance(said, dict) else ():
        if re.fullmatch(r"x[0-9]{0,3}", str(axis)) and isinstance(ends, list) and len(ends) == 2:
            low, high = ends
            if all(type(end) in (int, float) and math.isfinite(end) for end in ends) and low < high:
                views[axis] = (float(low), float(high))
    return views


def _show(
    drawing: Drawing, views: Views, key: str, on_click: Callable[[list[float]], None] | None
) -> None:
    def clicked() -> None:
        point = getattr(st.session_state.get(key), "clicked", None)
        if on_click and isinstance(point, list) and all(type(v) in (int, float) for v in point):
            on_click(point)

    data = {**asdict(drawing), "views": views, "plotly_url": _plotly_url()}
    _component(key=key, data=data, on_clicked_change=clicked, on_view_change=lambda: None)


@cache
def _plotly_url() -> str:
    """Put plotly.py's own plotly.min.js where it is served, once. No network is needed."""
    name = f"plotly-{plotly.__version__}.min.js"
    target = _STATIC / name
    if not target.exists():
        _STATIC.mkdir(exist_ok=True)
        source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
        descriptor, aside = tempfile.mkstemp(prefix=".plotly-", dir=_STATIC)
        os.close(descriptor)
        shutil.copyfile(source, aside)
        os.chmod(aside, 0o644)
        os.replace(aside, target)
    base = st.get_option("server.baseUrlPath").strip("/")
    return f"{'/' + base if base else ''}/app/static/{name}"
