"""Runs as the page sees them: found under the root, kept open, with their progress and actions."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import streamlit as st

from bnviz import captions, jobs, queue, store
from bnviz.config import ConfigError, RunConfig, allowed, parse_setting
from bnviz.processes import has_process, is_worker, silent_for_s, true_status
from bnviz.status import ACTIVE, RESUMABLE, UNFINISHED, State, Status
from bnviz.store import Run, StoreError
from bnviz.ui import controls
from bnviz.ui.settings_form import explanation
from bnviz.ui.text import duration, literal

TOGETHER_S = 5
"""Runs submitted within this time of each other were started together."""

ADVANCE_INTERVAL_S = 5.0

LOG_TAIL_BYTES = 4_000

IMAGES = {
    "unreadable_images": "{count} images could not be read and are passed over; the log names them "
    "(More).",
    "enlarged_images": "{count} images are smaller than the crops, and are enlarged.",
}
"""What is said of the images of a run, by the key in its summary."""

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


def show(run_ids: list[str]) -> None:
    """Choose the runs that pages show; in a callback, or before going to another page."""
    st.session_state["shown"] = run_ids
    if "runs" in st.session_state:
        st.session_state["runs"] = run_ids


def shown() -> list[str]:
    """Ids of the runs that pages show, also on a page that shows none."""
    return list(st.session_state.get("runs") or st.session_state.get("shown", []))


def any_active(runs: Sequence[Run]) -> bool:
    return any(true_status(run).state in ACTIVE for run in runs)


def quiet_for_s(runs: Sequence[Run]) -> float:
    """Seconds since the last of these runs changed its state; 0 while one is active."""
    statuses = [true_status(run) for run in runs]
    if any(status.state in ACTIVE for status in statuses):
        return 0.0
    return time.time() - max(status.updated_at for status in statuses)


def progress_rows(runs: Sequence[Run], names: Sequence[str]) -> None:
    """For each run: state, progress, speed, what its state means, and what can be done."""
    statuses = [true_status(run) for run in runs]
    places: dict[str, int] = {}
    if any(status.state is State.QUEUED and status.pid is None for status in statuses):
        root = store.default_root()
        if time.monotonic() - st.session_state.get("advanced", 0.0) > ADVANCE_INTERVAL_S:
            st.session_state["advanced"] = time.monotonic()
            with contextlib.suppress(StoreError):  # the page says so when it is drawn in full
                queue.advance(root)  # where even the shells that wait for workers were killed
        line = queue.waiting(root)
        places = {run.run_id: place for place, run in enumerate(line, start=1)}
    for run, name, status in zip(runs, names, statuses, strict=True):
        _row(run, name, status, places.get(run.run_id))
        _explain(run, status, places.get(run.run_id))


def _row(run: Run, name: str, status: Status, place: int | None) -> None:
    state = status.state
    word, colour, icon = LOOK[state]
    if place is not None:
        word = "waiting"
    with st.container(horizontal=True, vertical_alignment="center", key=f"row-{run.run_id}"):
        st.badge(word, icon=icon, color=colour)  # type: ignore[arg-type]
        text = f"**{literal(name)}** · step {status.step:,} of {status.steps:,}"
        st.progress(min(1.0, status.step / status.steps), text=text + _details(status))
        asked = jobs.requests(run.paths)
        # One key for both: a button that gives way to one of another key stays beside it until the
        # whole tick is drawn, and a click meanwhile misses.
        if state in ACTIVE:
            pausing = jobs.PAUSE in asked and has_process(status)
            _button(run, "go", "Pausing" if pausing else "Pause", jobs.pause, "pause", pausing)
        elif state in RESUMABLE:
            _button(run, "go", "Resume", jobs.resume, "play_arrow")
        if state in UNFINISHED:
            hangs = silent_for_s(status) is not None  # then a second click kills
            cancelling = jobs.CANCEL in asked and has_process(status) and not hangs
            label = "Cancelling" if cancelling else "Cancel"
            _button(run, "cancel", label, jobs.cancel, "stop", cancelling)
        more = st.popover("More", key=f"more-{run.run_id}", on_change="rerun")
        if more.open:  # what nobody sees would make each tick longer
            with more:
                _more(run, status)


def _button(
    run: Run,
    key: str,
    label: str,
    action: Callable[[Run], object],
    icon: str,
    disabled: bool = False,
) -> None:
    st.button(
        label,
        key=f"{key}-{run.run_id}",
        icon=f":material/{icon}:",
        disabled=disabled,
        on_click=_act,
        args=(action, run),
    )


def _more(run: Run, status: Status) -> None:
    if status.state is State.RUNNING:
        _learning_rate(run)
    _button(run, "retry", "Start again with the same settings", _retry, "replay")
    _one_change(run)
    st.button(
        "Copy the settings to the left",
        key=f"copy-{run.run_id}",
        icon=":material/content_copy:",
        on_click=_copy,
        args=(run,),
        help="To start it again with changes.",
    )
    _delete_button(run, running=has_process(status))
    if log := _log_tail(run):
        st.caption(f"The end of {literal(str(run.paths.log))}")
        st.code(log, language=None, height=240 if log.count("\n") > 8 else "content")


def _one_change(run: Run) -> None:
    """The same again, with one setting changed."""
    settings = run.config.flat()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        path = st.selectbox(
            "Start again with another",
            list(settings),
            index=list(settings).index("optimizer.learning_rate"),
            key=f"change-{run.run_id}",
            format_func=lambda path: path.rpartition(".")[2].replace("_", " "),
            width=190,
        )
        text = st.text_input(
            f"instead of {captions.value_text(settings[path])}",
            key=f"to-{run.run_id}-{path}",
            placeholder="new value",
            help=f"{explanation(path)}  \nAllowed: {allowed(path)}.",
            width=190,
        )
        changes, problems = {}, []
        if text:
            try:
                changes = dict([parse_setting(f"{path}={text}")])
                run.config.replace(changes)
            except ConfigError as error:
                problems = error.problems
        st.button(
            "Start",
            key=f"start-changed-{run.run_id}",
            icon=":material/play_arrow:",
            disabled=not changes or bool(problems),
            on_click=_act,
            args=(partial(_retry, changes=changes), run),
        )
    for problem in problems:
        st.error(literal(problem), icon=":material/block:")


def _delete_button(run: Run, running: bool) -> None:
    st.button(
        "Delete",
        key=f"delete-{run.run_id}",
        icon=":material/delete:",
        on_click=_act,
        args=(_delete, run),
        disabled=running,
        help="Cancel it first." if running else f"It can be undone for {jobs.TRASH_DAYS} days.",
    )


def readable(run_id: str) -> Run | None:
    """A run to show; None, and a sentence on the page, where it is gone or cannot be read."""
    try:
        run = find(run_id)
    except StoreError as error:  # removed at this very moment
        st.error(literal(str(error)), icon=":material/error:")
        return None
    try:
        assert run.config
    except StoreError as error:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.error(literal(str(error)), icon=":material/error:")
            _delete_button(run, running=has_process(true_status(run)))
        return None
    return run


def start(configs: Mapping[str, RunConfig], group: str = "") -> list[str]:
    """Submit runs by their names; returns the ids of those that were. A problem is said at the top
    of the page that is drawn next."""
    try:
        return jobs.submit_all(list(configs.items()), store.default_root(), group)
    except (ConfigError, StoreError) as error:
        st.session_state["problem"] = str(error)
        return []


def _learning_rate(run: Run) -> None:
    key = f"rate-{run.run_id}"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        changes = run.rate_changes()
        now = changes[-1][1] if changes else run.config.optimizer.learning_rate
        st.number_input("Learning rate", value=now, step=None, format="%g", key=key)
        st.button(
            "Set",
            key=f"set-{run.run_id}",
            on_click=_act,
            args=(lambda run: jobs.set_learning_rate(run, st.session_state[key]), run),
            help="From the next step on; the figure marks where. A schedule multiplies it.",
        )


def _act(action: Callable[[Run], object], run: Run) -> None:
    """Do something to a run; what cannot be done is said at the top of the page."""
    try:
        action(run)
    except (StoreError, ConfigError) as error:
        st.session_state["problem"] = str(error)
    st.session_state["refresh"] = True


def _retry(run: Run, changes: Mapping[str, Any] = MappingProxyType({})) -> None:
    show([*shown(), jobs.retry(run, changes)])


def _delete(run: Run) -> None:
    jobs.delete(run)
    st.session_state["deleted"] = [run.run_id]
    st.session_state["were_shown"] = [run.run_id]


def _copy(run: Run) -> None:
    controls.load(run.config)
    st.session_state["refresh"] = True


def _log_tail(run: Run) -> str:
    try:
        with open(run.paths.log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _details(status: Status) -> str:
    parts = []
    if (accuracy := status.test_accuracy) is not None:
        parts.append(f"test accuracy {accuracy:.4f}")
    if status.state is State.RUNNING and status.steps_per_s:
        parts.append(f"{status.steps_per_s:,.0f} steps/s")
        parts.append(f"{duration(status.eta_s or 0)} left")
    elif status.started_at and status.finished_at:
        parts.append(f"took {duration(status.finished_at - status.started_at)}")
    if status.device:
        parts.append(literal(status.device))
    return "".join(f" · {part}" for part in parts)


def _explain(run: Run, status: Status, place: int | None) -> None:
    """What a state that is not plain progress means, and what to do."""
    for key, words in IMAGES.items():
        if type(count := status.summary.get(key)) is int and count:
            st.caption(words.format(count=f"{count:,}"))
    state = status.state
    silence = silent_for_s(status)
    if silence is not None:
        end = "Cancel ends it" if is_worker(status.pid or 0) else f"End process {status.pid}"
        st.warning(
            f"No sign of life for {duration(silence)}: it hangs, or the machine is too busy. "
            f"{end}; then it can be resumed from its last checkpoint."
        )
    elif place is not None:
        held_up = queue.held_up(store.default_root())
        wait = f"but {held_up}" if held_up else "waiting for a free slot"
        st.caption(f"Number {place} in line, {wait}.")
    elif state is State.QUEUED:
        st.caption("Starting: loading PyTorch and the data takes a few seconds.")
    elif state is State.PAUSED and status.reason:
        st.warning(f"Paused: {literal(status.reason)}.")
    elif state is State.DIVERGED:
        reason = literal(str(status.summary.get("reason", "")))
        st.warning(
            f"Diverged at step {status.step:,}: {reason}. That is a result; a smaller learning "
            "rate would keep it finite."
        )
    elif state is State.LOST:
        why = literal(status.reason or "its process is gone (killed, or the machine restarted)")
        st.error(
            f"Lost: {why}. What it had recorded is shown below; Resume lets it go on from its "
            "last checkpoint."
        )
    elif state is State.FAILED and status.error is not None:
        st.error(
            f"{literal(status.error.type)}: {literal(status.error.message)}\n\n"
            "What was recorded is kept. When the cause is gone, Resume lets it go on. The run's "
            f"output is in {literal(str(run.paths.log))}."
        )
        with st.expander("Traceback"):
            st.code(status.error.traceback, language=None)
