"""Runs that were started together: how far they are, and what can be done with all of them."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from bnviz import jobs
from bnviz.processes import true_status
from bnviz.status import UNFINISHED
from bnviz.store import Run, StoreError
from bnviz.ui import runs


def progress(chosen: Sequence[Run], key: str) -> None:
    """How many have ended, and buttons to cancel and to compare them.

    Args:
        key: of the buttons on the page.
    """
    active = [run for run in chosen if true_status(run).state in UNFINISHED]
    ended = len(chosen) - len(active)
    st.progress(ended / len(chosen), text=f"{ended} of {len(chosen)} runs have ended")
    with st.container(horizontal=True):
        st.button(
            "Cancel all",
            key=f"cancel_{key}",
            icon=":material/stop:",
            disabled=not active,
            on_click=_cancel,
            args=(active,),
        )
        if st.button(
            "Compare the runs", key=f"compare_{key}", icon=":material/stacked_line_chart:"
        ):
            ids = [run.run_id for run in chosen]
            runs.show(ids)
            st.switch_page(st.session_state["pages"]["compare"], query_params={"run": ids})


def _cancel(active: Sequence[Run]) -> None:
    for run in active:
        try:
            jobs.cancel(run)
        except StoreError:
            continue  # it has ended meanwhile
    st.session_state["refresh"] = True
