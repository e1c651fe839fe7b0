"""Starting and stopping runs. The truth about a run is in its directory, never in memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from bnviz.config import RunConfig
from bnviz.status import UNFINISHED, State, Status
from bnviz.store import Run, RunPaths, StoreError, new_run_id, write_config, write_status

CANCEL = "cancel"
"""Name of the request file in `control/`."""

START_TOLERANCE_S = 2.0
"""Two readings of one process's start time differ by less than this; a process that got the same
pid later differs by more."""

_workers: list[subprocess.Popen[bytes]] = []
"""Workers started here, kept only so that the finished ones can be reaped."""


def submit(config: RunConfig, root: Path, name: str) -> str:
    """Start a run in a process of its own, which outlives this one. Returns its id at once.

    Raises:
        StoreError: the root is not a folder that can be written.
    """
    run_id = new_run_id(name)
    paths = RunPaths(root / run_id)
    try:
        paths.control.mkdir(parents=True)
        write_config(paths, config)
        log = open(paths.log, "wb")  # noqa: SIM115  closed below
    except OSError as error:
        raise StoreError(
            f"cannot write runs to {root.absolute()}: {error.strerror}; choose a folder that can "
            "be written with --root or BNVIZ_ROOT"
        ) from error
    with log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "bnviz.worker", str(paths.directory.absolute())],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # The worker waits for this file, and from then on is the only one to write it. So there is
    # no moment at which a run is shown without the process that stands behind it.
    now = time.time()
    queued = Status(
        state=State.QUEUED,
        steps=config.training.steps,
        pid=worker.pid,
        pid_started=process_started(worker.pid),
        submitted_at=now,
        updated_at=now,
    )
    write_status(paths, queued)
    _workers[:] = [other for other in _workers if other.poll() is None] + [worker]
    return run_id


def cancel(run: Run) -> None:
    """Ask a run to stop. It does so within two seconds and keeps all that it recorded.

    Raises:
        StoreError: the run is not running.
    """
    state = state_of(run.status)
    if state not in UNFINISHED:
        raise StoreError(f"{run.run_id} is {state}, so there is nothing to cancel")
    run.paths.control.mkdir(exist_ok=True)
    (run.paths.control / CANCEL).touch()


def cancel_requested(paths: RunPaths) -> bool:
    """Whether a cancel was asked for; until the worker has seen it the run is still running."""
    return (paths.control / CANCEL).exists()


def state_of(status: Status) -> State:
    """The state that is true now: LOST where a process should stand behind it and is gone."""
    if status.state not in UNFINISHED or status.pid is None:
        return status.state
    started = process_started(status.pid)
    if started is None or abs(started - (status.pid_started or 0)) > START_TOLERANCE_S:
        return State.LOST
    return status.state


def process_started(pid: int) -> float | None:
    """Start time of a living process, seconds since the epoch; None where there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def wait_until_finished(run: Run, timeout_s: float) -> State:
    """Wait for a run to end; returns its state then, or when the time is up."""
    deadline = time.monotonic() + timeout_s
    while (state := state_of(run.status)) in UNFINISHED and time.monotonic() < deadline:
        time.sleep(0.05)
    return state
