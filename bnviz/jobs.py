"""Starting and stopping runs. The truth about a run is in its directory, never in memory."""

from __future__ import annotations

import shutil
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
"""Two readings of one process's start differ by less than this (the boot time that both are
relative to is rounded); a process that got the same pid later differs by more."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_workers: list[subprocess.Popen[bytes]] = []
"""Workers started here, kept only so that the finished ones can be reaped."""


def submit(config: RunConfig, root: Path, name: str) -> str:
    """Start a run in a process of its own, which outlives this one. Returns its id at once.

    Raises:
        StoreError: the root is not a folder that can be written, or no process can be started.
    """
    run_id = new_run_id(name)
    paths = RunPaths(root / run_id)
    try:
        paths.control.mkdir(parents=True)
    except OSError as error:
        raise StoreError(_cannot_write(root, error)) from error
    try:
        write_config(paths, config)
        _start(paths, config)
    except OSError as error:
        shutil.rmtree(paths.directory, ignore_errors=True)
        if isinstance(error, BlockingIOError):
            raise StoreError(
                f"cannot start a process: {error.strerror}; end some others and try again"
            ) from error
        raise StoreError(_cannot_write(root, error)) from error
    return run_id


def _cannot_write(root: Path, error: OSError) -> str:
    return (
        f"cannot write runs to {root.absolute()}: {error.strerror}; choose a folder that can "
        "be written with --root or BNVIZ_ROOT"
    )


def _start(paths: RunPaths, config: RunConfig) -> None:
    with open(paths.log, "wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "bnviz.worker", str(paths.directory.absolute())],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _workers[:] = [other for other in _workers if other.poll() is None] + [worker]
    # The worker waits for this file, and from then on is the only one to write it. So there is
    # no moment at which a run is shown without the process that stands behind it.
    now = time.time()
    queued = Status(
        state=State.QUEUED,
        steps=config.training.steps,
        pid=worker.pid,
        pid_started=process_started(worker.pid),
        boot_id=boot_id(),
        submitted_at=now,
        updated_at=now,
    )
    try:
        write_status(paths, queued)
    except OSError:
        worker.kill()
        raise


def cancel(run: Run) -> None:
    """Ask a run to stop. It does so within two seconds and keeps all that it recorded.

    Raises:
        StoreError: the run is not running.
    """
    state = true_status(run).state
    if state not in UNFINISHED:
        raise StoreError(f"{run.run_id} is {state}, so there is nothing to cancel")
    run.paths.control.mkdir(exist_ok=True)
    (run.paths.control / CANCEL).touch()


def cancel_requested(paths: RunPaths) -> bool:
    """Whether a cancel was asked for; until the worker has seen it the run is still running."""
    return (paths.control / CANCEL).exists()


def true_status(run: Run) -> Status:
    """The status with the state that is true now: LOST where a process should be and is gone.

    Raises:
        StoreError: the status cannot be read.
    """
    status = run.status
    if _process_is_gone(status):
        status = run.status  # what it wrote last, it wrote before it was gone
        if _process_is_gone(status):
            return status.model_copy(update={"state": State.LOST})
    return status


def _process_is_gone(status: Status) -> bool:
    if status.state not in UNFINISHED or status.pid is None:
        return False
    started = process_started(status.pid)
    return (
        started is None
        or status.boot_id != boot_id()
        or abs(started - (status.pid_started or 0)) > START_TOLERANCE_S
    )


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


def wait_until_finished(run: Run, timeout_s: float) -> State:
    """Wait for a run to end; returns its state then, or when the time is up."""
    deadline = time.monotonic() + timeout_s
    while (state := true_status(run).state) in UNFINISHED and time.monotonic() < deadline:
        time.sleep(0.05)
    return state
