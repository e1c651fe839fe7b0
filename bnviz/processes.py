"""Which process stands behind a run, and whether it still does."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

from bnviz.status import UNFINISHED, State, Status
from bnviz.store import Run, StoreError

START_TOLERANCE_S = 2.0
"""Two readings of one process's start differ by less than this (the boot time that both are
relative to is rounded); a process that got the same pid later differs by more."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

SILENT_AFTER_S = {State.RUNNING: 30.0, State.QUEUED: 120.0}
"""A worker reports at least every second while it trains, and starts within seconds: after this
long it hangs, or the machine has no time for it."""

START_TIMEOUT_S = 30.0
"""How long a worker waits until the status names it."""


def true_status(run: Run) -> Status:
    """The status with the state that is true now: LOST where a process should be and is gone, or
    where the status cannot be read (`reason` says that)."""
    try:
        status = run.status
        if _is_gone(status):
            status = run.status  # what it wrote last, it wrote before it was gone
            if _is_gone(status):
                return status.model_copy(update={"state": State.LOST})
        if has_process(status) and not _works_on(status.pid or 0, run):
            reason = "it is a copy of a run that goes on elsewhere"
            return status.model_copy(update={"state": State.LOST, "reason": reason})
    except StoreError as error:
        values = {"submitted_at": time.time(), "updated_at": 0.0, "reason": str(error)}
        return Status(state=State.LOST, steps=_steps(run), **values)
    return status


def named_by_its_status(run: Run) -> bool:
    """For a worker: wait until the status names the shell that started this process; False where
    it names another, which then trains this run."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (pid := run.status.pid) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return pid == os.getppid()


def has_process(status: Status) -> bool:
    """Whether a living process stands behind a run."""
    return status.state in UNFINISHED and status.pid is not None and not _is_gone(status)


def silent_for_s(status: Status) -> float | None:
    """Seconds without a sign of life from a living worker, where that is too long; else None."""
    silence = time.time() - status.updated_at
    limit = SILENT_AFTER_S.get(status.state)
    return silence if limit is not None and silence > limit and has_process(status) else None


def is_worker(pid: int) -> bool:
    """Whether a process was started for runs alone. A run may also be carried out within another
    program (`bnviz.run_here`), which must not be killed with it."""
    return bool(_worker_directories(pid))


def kill(status: Status) -> None:
    """End the process of a run, and the shell that waits for it, without asking them. Runs that
    train in the same process are LOST then, and can be resumed."""
    if has_process(status):
        assert status.pid is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(os.getpgid(status.pid), signal.SIGKILL)


def process_group(status: Status) -> int:
    """The same for runs that train in one process, also while it takes over from the shell that
    waits for it."""
    assert status.pid is not None
    try:
        return os.getpgid(status.pid)
    except ProcessLookupError:
        return status.pid


def process_started(pid: int) -> float | None:
    """Start of a living process in seconds after the boot; None where there is none."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # Both are relative to the clock as it is now, so setting the clock changes nothing here.
        return process.create_time() - psutil.boot_time()
    except psutil.Error:
        return None


def boot_id() -> str:
    """Names this boot of the machine; empty where the system does not tell."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _worker_directories(pid: int) -> list[str]:
    """The run directories that a worker, or the shell that waits for one, was started for; none for
    another program."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return []
    if "bnviz.worker" in words:
        return words[words.index("bnviz.worker") + 1 :]
    # See `bnviz.queue.GUARD`: sh -c GUARD python root directory…
    return words[5:] if any("bnviz.worker" in word for word in words) else []


def _works_on(pid: int, run: Run) -> bool:
    """False where a process was started for other run directories than this one."""
    directories = _worker_directories(pid)
    unknown = not directories
    for directory in directories:
        try:
            if os.path.samefile(directory, run.paths.directory):
                return True
        except OSError:  # one of the two is not there (any more)
            unknown = True
    return unknown


def _steps(run: Run) -> int:
    try:
        return run.config.training.steps
    except StoreError:
        return 1


def _is_gone(status: Status) -> bool:
    if status.state not in UNFINISHED or status.pid is None:
        return False
    started = process_started(status.pid)
    return (
        started is None
        or status.boot_id != boot_id()
        or abs(started - (status.pid_started or 0)) > START_TOLERANCE_S
    )
