"""The live chart: a component that keeps one Plotly chart and updates it in place.

Streamlit's own `st.plotly_chart` is replaced by each new figure and loses zoom and hover.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import plotly
import plotly.graph_objects as go
import streamlit as st

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


@dataclass(frozen=True)
class Drawing:
    """A figure ready to be sent to the browser."""

    figure: str  # JSON
    alt: str
    filename: str


def draw(wide: go.Figure, narrow: go.Figure, alt: str, filename: str) -> Drawing:
    """Make a figure ready.

    Args:
        wide, narrow: the same traces, with the layouts for wide and narrow screens.
        alt: the figure in words.
        filename: of saved images, without extension.
    """
    figure = json.loads(wide.to_json())
    payload = {
        "data": figure["data"],
        "layout": figure["layout"],
        "narrow": json.loads(go.Figure(layout=narrow.layout).to_json())["layout"],
    }
    return Drawing(json.dumps(payload), alt, filename)


def show(
    drawing: Drawing, *, key: str, on_click: Callable[[list[float]], None] | None = None
) -> None:
    """Show a drawing; called again with the same key, update it.

    Args:
        on_click: called with the customdata of a point that is clicked.
    """

    def clicked() -> None:
        point = getattr(st.session_state.get(key), "clicked", None)
        if on_click and isinstance(point, list) and all(type(v) in (int, float) for v in point):
            on_click(point)

    data = {**asdict(drawing), "plotly_url": _plotly_url()}
    _component(key=key, data=data, on_clicked_change=clicked)


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
