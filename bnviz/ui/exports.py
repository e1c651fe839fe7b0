"""The button Export of a figure: its files, and all of its data."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import streamlit as st

from bnviz import bundle, export, figure_files, style
from bnviz import tables as stored
from bnviz.store import Run
from bnviz.ui.chart import Build

MIME = {
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "html": "text/html",
    "pdf": "application/pdf",
}
NO_BROWSER = (
    "PDF needs Chromium or Chrome on the machine of the dashboard, and none was found. Install "
    "one (Debian: apt install chromium), or save SVG."
)


@dataclass(frozen=True)
class Table:
    """Data to download: file name without extension, and what makes the table when it is asked
    for; whether it has the paper's numbers, too."""

    filename: str
    make: Callable[[], pd.DataFrame]
    with_paper: bool = False


def exports(
    key: str,
    chosen: Sequence[Run],
    filename: str,
    build: Build,
    tables: Mapping[str, Table],
    label: str = "Export",
    with_paper: bool = False,
) -> None:
    """A button that unfolds the downloads. Not for the inside of a fragment that ticks: the page's
    files are made anew each time it is drawn, and a download of the older one would fail.

    Args:
        key: of the chart.
        chosen: the runs that the figure shows.
        filename: of the figure, without extension.
        build: as for `chart.live`.
        tables: by the name on the button.
        with_paper: the figure has the paper's curves, too.
    """
    with st.popover(label, icon=":material/download:", key=f"export-{key}"):
        look = st.session_state.get("look", "screen")
        st.session_state.setdefault(f"look-{key}", look)
        st.segmented_control(
            "Look of the figure, also of its PNG and SVG",
            list(style.LOOKS),
            format_func=style.LOOKS.__getitem__,
            key=f"look-{key}",
            required=True,
            on_change=_set_look,
            args=(f"look-{key}",),
            help="The looks for a paper are 3.25 and 6.75 inches wide, white, and readable in "
            "black and white.",
        )
        no_browser = None if figure_files.browser() else NO_BROWSER
        with st.container(horizontal=True):
            for format, text, problem in (
                ("html", "Interactive HTML", None),
                ("pdf", "PDF", no_browser),
            ):
                st.download_button(
                    text,
                    partial(_figure, build, filename, format, look, chosen, with_paper),
                    f"{filename}.{format}",
                    MIME[format],
                    on_click="ignore",
                    key=f"{key}-{format}",
                    disabled=problem is not None,
                    help=problem,
                )
        for name, table in tables.items():
            with st.container(horizontal=True):
                for format, word in (("csv", "CSV"), ("parquet", "Parquet")):
                    st.download_button(
                        f"{name} {word}",
                        partial(_data, table, format, chosen),
                        f"{table.filename}.{format}",
                        MIME[format],
                        on_click="ignore",
                        key=f"{key}-{table.filename}-{format}",
                    )
        st.caption(
            "Each file names its runs with their settings, versions and date; data have all "
            "points. PNG and SVG, of what you see with your zoom, are right below the figure."
        )


def _set_look(key: str) -> None:
    look = st.session_state[key]
    st.session_state["look"] = look
    for other in st.session_state:
        if str(other).startswith("look-"):
            st.session_state[other] = look


def _figure(
    build: Build, filename: str, format: str, look: str, chosen: Sequence[Run], with_paper: bool
) -> bytes:
    drawn = build({}).drawn
    origin = stored.origin(chosen, with_paper=with_paper)
    return figure_files.to_file(drawn, filename, format, look, origin)


def _data(table: Table, format: str, chosen: Sequence[Run]) -> bytes:
    rows = table.make()
    return stored.WRITERS[format](rows, stored.origin(chosen, with_paper=table.with_paper))


def packed(chosen: Sequence[Run]) -> bytes:
    """Whole runs with their figures as a zip file, which the page Runs imports."""
    buffer = io.BytesIO()
    bundle.pack(chosen, buffer, export.bundle_figures(chosen))
    return buffer.getvalue()
