"""Figures, tables and text as one HTML file that opens in any browser, with no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment
from markupsafe import Markup
from plotly.offline import get_plotlyjs

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 "Source Sans Pro", "Source Sans", Helvetica, Arial, sans-serif;
       color: #222; background: white; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.75rem 0.25rem 0; text-align: left;
         vertical-align: top; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
pre { font-size: 0.85rem; overflow-x: auto; }
footer { margin-top: 2rem; font-size: 0.85rem; color: #555; }
</style>
<script>{{ plotly }}</script>
</head>
<body>
<h1>{{ title }}</h1>
{% for part in parts %}
<section>
{% if part.heading %}<h2>{{ part.heading }}</h2>{% endif %}
{% if part.text %}<p>{{ part.text }}</p>{% endif %}
{% if part.html %}<div class="wide">{{ part.html }}</div>{% endif %}
{% if part.code %}<details><summary>{{ part.code_title }}</summary>
<pre>{{ part.code }}</pre></details>{% endif %}
</section>
{% endfor %}
<footer>{{ source }}</footer>
<script type="application/json" id="origin">{{ origin }}</script>
</body>
</html>
"""


@dataclass(frozen=True)
class Part:
    """A section: heading and text, then a figure or table, then text to unfold."""

    heading: str = ""
    text: str = ""
    content: go.Figure | pd.DataFrame | None = None
    code_title: str = ""
    code: str = ""

    @cached_property
    def html(self) -> Markup | None:
        if isinstance(self.content, go.Figure):
            # plotly.py escapes what could end its script.
            return Markup(
                self.content.to_html(
                    full_html=False, include_plotlyjs=False, config={"displaylogo": False}
                )
            )
        if isinstance(self.content, pd.DataFrame):
            known = self.content.astype(object).where(self.content.notna(), "–")
            # Which escapes.
            return Markup(known.to_html(index=False, border=0, float_format="{:.4g}".format))
        return None


def render(title: str, parts: Sequence[Part], origin: dict[str, Any]) -> bytes:
    """The page, with its origin (see `bnviz.tables.origin`) in words and, as JSON, in the element
    `origin`. Whatever users wrote is shown as text."""
    made = origin["versions"]
    source = f"Made by bnviz {made['bnviz']} with PyTorch {made['torch']}, {origin['exported_at']}"
    source += "".join(f", {run_id}" for run_id in origin["runs"])
    source += f". With {origin['paper']}" if "paper" in origin else ""
    template = Environment(autoescape=True).from_string(_PAGE)
    page = template.render(
        title=title,
        parts=parts,
        plotly=Markup(get_plotlyjs()),
        source=source,
        origin=Markup(json.dumps(origin).replace("<", "\\u003c")),
    )
    return page.encode()
