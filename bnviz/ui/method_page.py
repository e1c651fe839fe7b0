"""The page Method: the paper's method in one run, and its example of what goes wrong without."""

from __future__ import annotations

import streamlit as st

from bnviz import captions, store
from bnviz.store import Run
from bnviz.ui import bias_growth, choices, frame, identities, inference, runs


def page() -> None:
    frame.title("Method")
    run_ids = store.list_run_ids(store.default_root())
    if not run_ids:
        st.info("There are no runs yet. Start some on the page Lab, then look into them here.")
    elif run := choices.choose_run(run_ids, with_bn=True):
        frame.watch(_progress, [run], run)
        inference.section(run)
        identities.section(run)
    bias_growth.section()


def _progress(run: Run) -> None:
    runs.progress_rows([run], captions.labels([run]))
