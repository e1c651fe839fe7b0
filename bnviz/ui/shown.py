"""Which runs a page shows, and what the user must know before anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from bnviz import jobs, queue, store
from bnviz.store import Run, StoreError
from bnviz.ui import runs
from bnviz.ui.text import literal

LOOPBACK = ("127.0.0.1", "localhost", "::1")

TICK_S = 1.0

SETTLED_S = 10.0
"""A page goes on ticking this long after the last run has ended. To stop, it is drawn anew in full,
and a download clicked in that moment fails: most are clicked right at the end."""


def title(text: str) -> None:
    """The top of a page: its name, the switch that stops its ticks, and what must be known."""
    st.session_state.pop("refresh", None)  # all is drawn anew
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.header(text, anchor=False)
        st.toggle(
            "Live",
            value=True,
            key="live",
            bind="query-params",
            width="content",
            help="Switch it off to look at something in peace; the runs go on.",
        )
    _messages()


def is_live() -> bool:
    """Whether the user wants pages to follow their runs."""
    return bool(st.session_state.get("live", True))


def watch(draw: Callable[..., None], followed: Sequence[Run], *arguments: Any) -> None:
    """Draw a part of the page with `draw(*arguments)`, and again at each tick while one of these
    runs is active."""
    live = is_live() and runs.any_active(followed)
    st.fragment(_tick, run_every=TICK_S if live else None)(draw, followed, arguments, live)


def _tick(
    draw: Callable[..., None], followed: Sequence[Run], arguments: tuple[Any, ...], live: bool
) -> None:
    if st.session_state.pop("refresh", False):
        st.rerun()  # drawn alone after an action that has changed more than this part
    try:
        draw(*arguments)
        ended = live and runs.quiet_for_s(followed) > SETTLED_S
    except StoreError as error:  # damaged or removed while it is looked at
        st.error(literal(str(error)), icon=":material/error:")
        return
    if ended:
        st.rerun()  # stop ticking


def _messages() -> None:
    address = str(st.get_option("server.address") or "")
    if address not in LOOPBACK:
        st.warning(
            "This dashboard can be reached from other machines, and whoever reaches it can start "
            "and delete runs. To prevent that, start it with --server.address=127.0.0.1.",
            icon=":material/public:",
        )
    if problem := st.session_state.pop("problem", None):
        st.error(literal(problem), icon=":material/block:")
    try:
        if store.default_root().is_dir():
            queue.advance(store.default_root())
    except StoreError as error:
        st.error(literal(str(error)), icon=":material/block:")
    trash = set(jobs.deleted(store.default_root()))
    if gone := [run_id for run_id in st.session_state.get("deleted", []) if run_id in trash]:
        what = gone[0] if len(gone) == 1 else f"{len(gone)} runs"
        with st.container(horizontal=True, vertical_alignment="center"):
            st.info(f"Deleted {what}.", icon=":material/delete:")
            st.button("Undo", key="undo", icon=":material/undo:", on_click=_undo, args=(gone,))


def _undo(run_ids: list[str]) -> None:
    try:
        for run_id in run_ids:
            jobs.restore(store.default_root(), run_id)
            if run_id in st.session_state.get("were_shown", []):
                show([*_shown(), run_id])
    except StoreError as error:
        st.session_state["problem"] = str(error)


def show(run_ids: list[str]) -> None:
    """Choose the runs that pages show; in a callback, or before going to another page."""
    st.session_state["shown"] = run_ids
    if "runs" in st.session_state:
        st.session_state["runs"] = run_ids


def _shown() -> list[str]:
    return list(st.session_state.get("runs") or st.session_state.get("shown", []))


def choose(run_ids: list[str]) -> list[Run]:
    """The runs to show. The address holds them, so a reload or another tab shows the same."""
    if "runs" not in st.session_state:  # the first time, or back from another page
        wanted = st.query_params.get_all("run")
        for run_id in set(wanted) - set(run_ids):
            st.warning(f"The address names a run that is not here: {literal(run_id[:80])}")
        st.session_state["runs"] = wanted or _shown() or runs.latest(run_ids)
    st.session_state["runs"] = [r for r in st.session_state["runs"] if r in run_ids]
    selected = st.multiselect(
        "Runs shown",
        run_ids,
        key="runs",
        format_func=name,
        placeholder="Choose runs",
        help="Newest first. All are in the accuracy panel; percentile panels are drawn for four, "
        "those without BN first.",
    )
    st.session_state["shown"] = selected  # the widget's own state is lost on another page
    if st.query_params.get_all("run") != selected:
        st.query_params["run"] = selected
    found = [run for run_id in selected if (run := runs.readable(run_id))]
    return sorted(found, key=lambda run: (run.config.model.normalization == "batch", run.run_id))


def name(run_id: str) -> str:
    """A run in a list to choose from."""
    day, clock, name = run_id[4:8], run_id[9:15], run_id[16:]
    return f"{day[:2]}-{day[2:]} {clock[:2]}:{clock[2:4]} {name}"
