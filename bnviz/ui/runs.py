"""Runs as the page sees them: found under the root, kept open, with their progress and actions."""

from __future__ import annotations

import time
from collections.abc import Sequence

import streamlit as st

from bnviz import jobs, store
from bnviz.status import UNFINISHED, State, Status
from bnviz.store import Run, StoreError
from bnviz.ui.text import duration, literal

TOGETHER_S = 5
"""Runs submitted within this time of each other were started together."""

LOOK = {
    State.QUEUED: ("starting", "gray", ":material/hourglass_top:"),
    State.RUNNING: ("running", "blue", ":material/play_arrow:"),
    State.PAUSED: ("paused", "orange", ":material/pause:"),
    State.COMPLETED: ("completed", "green", ":material/check:"),
    State.DIVERGED: ("diverged", "orange", ":material/trending_up:"),
    State.FAILED: ("failed", "red", ":material/error:"),
    State.CANCELLED: ("cancelled", "gray", ":material/stop:"),
    State.LOST: ("lost", "red", ":material/help:"),
}


@st.cache_resource(max_entries=64, show_spinner=False)
def _open(directory: str) -> Run:
    return store.open_run(directory)


def find(run_id: str) -> Run:
    """An open run; kept, with what was read of it, for all sessions. Raises StoreError."""
    return _open(str(store.run_directory(store.default_root(), run_id).absolute()))


def latest(run_ids: Sequence[str]) -> list[str]:
    """Of ids, newest first: the newest run and those started together with it."""

    def seconds(run_id: str) -> float:
        try:
            return time.mktime(time.strptime(run_id[:15], "%Y%m%d-%H%M%S"))
        except ValueError:
            return 0.0

    return [r for r in run_ids if abs(seconds(r) - seconds(run_ids[0])) <= TOGETHER_S]


def any_unfinished(runs: Sequence[Run]) -> bool:
    return any(jobs.true_status(run).state in UNFINISHED for run in runs)


def progress_row(run: Run, label: str) -> None:
    """State, progress, speed and, while there is something to cancel, the button for it."""
    status = jobs.true_status(run)
    state = status.state
    word, colour, icon = LOOK[state]
    with st.container(horizontal=True, vertical_alignment="center", key=f"row-{run.run_id}"):
        st.badge(word, icon=icon, color=colour)  # type: ignore[arg-type]
        text = f"**{literal(label)}** · step {status.step:,} of {status.steps:,}"
        st.progress(min(1.0, status.step / status.steps), text=text + _details(status, state))
        if state in UNFINISHED:
            asked = jobs.cancel_requested(run.paths)
            st.button(
                "Cancelling" if asked else "Cancel",
                disabled=asked,
                key=f"cancel-{run.run_id}",
                icon=":material/stop:",
                on_click=_cancel,
                args=(run,),
                help=f"Stop {run.run_id}; what it has recorded is kept.",
            )
    _explain(run, status, state)


def _details(status: Status, state: State) -> str:
    parts = []
    if (accuracy := status.test_accuracy) is not None:
        parts.append(f"test accuracy {accuracy:.4f}")
    if state is State.RUNNING and status.steps_per_s:
        parts.append(f"{status.steps_per_s:,.0f} steps/s")
        parts.append(f"{duration(status.eta_s or 0)} left")
    elif status.started_at and status.finished_at:
        parts.append(f"took {duration(status.finished_at - status.started_at)}")
    if status.device:
        parts.append(literal(status.device))
    return "".join(f" · {part}" for part in parts)


def _explain(run: Run, status: Status, state: State) -> None:
    """What a state that is not plain progress means, and what to do."""
    if state is State.QUEUED:
        st.caption("Starting: loading PyTorch and the data takes a few seconds.")
    elif state is State.DIVERGED:
        reason = literal(str(status.summary.get("reason", "")))
        st.warning(
            f"Diverged at step {status.step:,}: {reason}. That is a result; a smaller learning "
            "rate would keep it finite."
        )
    elif state is State.LOST:
        st.error(
            "The process of this run is gone (killed, or the machine restarted). What it had "
            "recorded is shown below; start the run again for the rest."
        )
    elif state is State.FAILED and status.error is not None:
        st.error(
            f"{literal(status.error.type)}: {literal(status.error.message)}\n\n"
            f"What was recorded is kept. The run's output is in {literal(str(run.paths.log))}."
        )
        with st.expander("Traceback"):
            st.code(status.error.traceback, language=None)


def _cancel(run: Run) -> None:
    try:
        jobs.cancel(run)
    except StoreError as error:  # it ended between the drawing of the button and the click
        st.toast(literal(str(error)))
