"""Downloading data sets from the page."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import streamlit as st

from bnviz import fetch, sources
from bnviz.settings import DataConfig
from bnviz.ui.text import literal

TICK_S = 1.0

COMMAND = (sys.executable, "-m", "bnviz", "fetch")


class _Download:
    """A process that downloads a data set, and what became of it."""

    def __init__(self, dataset: str) -> None:
        self.goes_on = True
        self.failure = ""
        """Why it failed, in the words of the command."""
        threading.Thread(target=self._wait, args=(dataset,), daemon=True).start()

    def _wait(self, dataset: str) -> None:
        done = subprocess.run(
            [*COMMAND, dataset],
            cwd=Path(__file__).resolve().parent.parent.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,  # Ctrl-C for the server is not for the download
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            self.failure = lines[-1].removeprefix("bnviz: ") if lines else "the download was ended"
        self.goes_on = False


@st.cache_resource(show_spinner=False)
def _downloads() -> dict[str, _Download]:
    """The last download of each data set, for all sessions."""
    return {}


def offer_download(config: DataConfig) -> None:
    """Where a data set can be downloaded and is not here: say so, with a button that does it, and
    its progress and end."""
    dataset = config.dataset
    if config.folder or not sources.download_size(dataset) or sources.is_here(dataset):
        return
    going_on = _goes_on(dataset)
    st.fragment(_offer, run_every=TICK_S if going_on else None)(dataset, going_on)


def _goes_on(dataset: str) -> bool:
    return dataset in _downloads() and _downloads()[dataset].goes_on


def _offer(dataset: str, going_on: bool) -> None:
    if _goes_on(dataset) != going_on:  # it has begun or ended: the page begins or ends its ticks
        st.rerun()
    title, size = sources.FILES[dataset].title, sources.download_size(dataset) / 1e6
    if going_on:
        done = fetch.downloaded_bytes(dataset) / 1e6
        text = f"Downloading {title}: {done:,.0f} of {size:,.0f} MB"
        st.progress(min(1.0, done / size), text=text)
        return
    if dataset in _downloads() and (problem := _downloads()[dataset].failure):
        st.error(literal(problem), icon=":material/block:")
    st.info(f"{title} is not here yet. It is a download of {size:,.0f} MB.")
    st.button(
        f"Download {title}",
        key=f"fetch-{dataset}",
        icon=":material/download:",
        on_click=_start,
        args=(dataset,),
    )


def _start(dataset: str) -> None:
    if not _goes_on(dataset):  # another tab may have been first
        _downloads()[dataset] = _Download(dataset)
