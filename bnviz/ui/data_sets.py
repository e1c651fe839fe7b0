"""Downloading data sets from the page."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

import streamlit as st

from bnviz import fetch, sources
from bnviz.settings import DataConfig
from bnviz.ui.text import literal

TICK_S = 1.0

COMMAND = (sys.executable, "-m", "bnviz", "fetch")


class _Download(NamedTuple):
    """The process that downloads a data set, and the file that holds what it says."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]


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
    download = _downloads().get(dataset)
    return download is not None and download.process.poll() is None


def _offer(dataset: str, going_on: bool) -> None:
    if _goes_on(dataset) != going_on:  # it has begun or ended: the page begins or ends its ticks
        st.rerun()
    title, size = sources.FILES[dataset].title, sources.download_size(dataset) / 1e6
    if going_on:
        done = fetch.downloaded_bytes(dataset) / 1e6
        text = f"Downloading {title}: {done:,.0f} of {size:,.0f} MB"
        st.progress(min(1.0, done / size), text=text)
        return
    if problem := _failure(dataset):
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
    if _goes_on(dataset):  # another tab was first
        return
    said = tempfile.TemporaryFile()  # noqa: SIM115  # read when the process has ended
    process = subprocess.Popen(
        [*COMMAND, dataset],
        cwd=Path(__file__).resolve().parent.parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        start_new_session=True,
    )
    _downloads()[dataset] = _Download(process, said)


def _failure(dataset: str) -> str:
    """Why the last download failed, in the words of the command; "" where none has."""
    download = _downloads().get(dataset)
    if download is None or not download.process.returncode:
        return ""
    download.said.seek(0)
    lines = download.said.read().decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("bnviz: ") if lines else "the download was ended"
