"""The page Method: what the paper's method does in one run."""

from __future__ import annotations

import streamlit as st

from bnviz import captions, store
from bnviz.store import Run
from bnviz.ui import choices, frame, inference, runs

SECTIONS = (inference.section,)
"""Each draws a part of the page for a run."""


def page() -> None:
    frame.title("Method")
    run_ids = store.list_run_ids(store.default_root())
    if not run_ids:
        st.info("There are no runs yet. Start some on the page Lab, then look into them here.")
        return
    run = choices.choose_run(run_ids)
    if run is None:
        return
    frame.watch(_progress, [run], run)
    for section in SECTIONS:
        section(run)


def _progress(run: Run) -> None:
    runs.progress_rows([run], captions.labels([run]))
