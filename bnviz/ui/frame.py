"""The frame of each page: its title, what the user must know, and the ticks that keep it live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def checked_address(page: str) -> Iterator[None]:
    """Around a page: where it is opened with an address that asks for what cannot be, that is said.

    Streamlit and `bnviz.ui.choices` take such a value out of the address, or correct it. Runs that
    are not here are named by `choices.choose_runs`.
    """
    top = st.container()
    opened = st.session_state.setdefault("opened", set())
    asked = {} if page in opened else {k: st.query_params.get_all(k) for k in st.query_params}
    opened.add(page)
    yield
    for key, values in asked.items():
        now = st.query_params.get_all(key) or _shown(key)  # a default leaves the address
        if key != "run" and not _same(values, now):
            wanted, shown = (literal(", ".join(texts)[:80]) for texts in (values, now))
            instead = f"the page takes {shown}" if shown else "the page takes its default"
            top.warning(
                f"The address asks for {literal(key)} = {wanted}, which cannot be; {instead}."
            )


def _shown(key: str) -> list[str]:
    """The value of a widget as an address has it."""
    value = st.session_state.get(key)
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [str(item) for item in values]


def _same(values: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two parameters say the same; 0.10 and 0.1 do."""
    try:
        return [float(v) for v in values] == [float(v) for v in others]
    except ValueError:
        return sorted(map(str.lower, values)) == sorted(map(str.lower, others))


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
        _name_damaged(followed)
        ended = live and runs.quiet_for_s(followed) > SETTLED_S
    except StoreError as error:  # damaged or removed while it is looked at
        st.error(literal(str(error)), icon=":material/error:")
        return
    if ended:
        st.rerun()  # stop ticking


def _name_damaged(followed: Sequence[Run]) -> None:
    for part in sorted(set().union(*(run.damaged for run in followed))):
        st.warning(
            f"Cannot read {literal(str(part))}: the points that it held are missing here.",
            icon=":material/broken_image:",
        )


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
                runs.show([*runs.shown(), run_id])
    except StoreError as error:
        st.session_state["problem"] = str(error)
