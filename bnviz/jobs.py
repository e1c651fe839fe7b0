"""What can be done with runs. The truth about a run is in its directory, never in memory.

A living worker alone writes its run's status; it is asked through small files in `control/`. Where
no process stands behind a run, its status changes under the root's lock.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnviz import queue, sources
from bnviz.about import About
from bnviz.config import ConfigError, RunConfig
from bnviz.files import sync, write_aside
from bnviz.processes import has_process, is_worker, kill, silent_for_s, true_status
from bnviz.queue import cannot_write, locked
from bnviz.status import ACTIVE, RESUMABLE, UNFINISHED, State, Status
from bnviz.store import (
    RUN_ID,
    Run,
    RunPaths,
    StoreError,
    new_run_id,
    open_run,
    run_directory,
    write_config,
    write_status,
)

CANCEL, PAUSE, LEARNING_RATE = "cancel", "pause", "learning_rate"
"""Names of the request files in `control/`; the last one holds the new value."""

TRASH_DAYS = 30
"""Deleted runs are kept this long, unless the trash is emptied."""


def submit(config: RunConfig, root: Path, name: str, group: str = "") -> str:
    """Put a run into the queue. It starts at once where a slot is free. Returns its id.

    Args and raises: as `submit_all`.
    """
    [run_id] = submit_all([(name, config)], root, group)
    return run_id


def submit_all(configs: Sequence[tuple[str, RunConfig]], root: Path, group: str = "") -> list[str]:
    """Put runs into the queue at once, each with its name. Returns their ids.

    Args:
        group: the same for runs that are started together, such as those of a sweep.

    Raises:
        ConfigError: the data that they ask for cannot be had, or a batch does not fit into the
            memory; nothing is made.
        StoreError: the root is not a folder that can be written, or a process can be started for
            none of them; nothing is made.
    """
    wanted = [config for _, config in configs]  # all are checked before the first starts
    sources.check(wanted)
    on_cpu = [config for config in wanted if queue.device_kind(config) == "cpu"]
    if too_large := [problem for config in on_cpu if (problem := sources.memory_problem(config))]:
        raise ConfigError(list(dict.fromkeys(too_large)))
    made: list[RunPaths] = []
    with locked(root):
        try:
            for name, config in configs:
                made.append(create(config, root, name, group))
            queue.advance_locked(root)
        except Exception as error:
            ids = {paths.directory.name for paths in made}
            if not isinstance(error, queue.CannotStart) or ids <= error.run_ids:
                for paths in made:
                    shutil.rmtree(paths.directory, ignore_errors=True)
                raise
    return [paths.directory.name for paths in made]


def create(config: RunConfig, root: Path, name: str, group: str = "") -> RunPaths:
    """Make the directory of a run that waits in the queue; the root's lock is held."""
    if config.data.folder:  # the worker has another working directory
        config = config.replace({"data.folder": str(sources.folder_of(config.data.folder))})
    paths = RunPaths(root / new_run_id(name))
    try:
        paths.control.mkdir(parents=True)
        now = time.time()
        write_status(
            paths,
            Status(
                state=State.QUEUED,
                steps=config.training.steps,
                submitted_at=now,
                queued_at=now,
                updated_at=now,
            ),
            durable=True,
        )
        if group:
            write_aside(paths.about, About(group=group).model_dump_json(indent=2) + "\n")
        write_config(paths, config)  # the last one: with it, the run is there
        sync(root)
    except OSError as error:
        shutil.rmtree(paths.directory, ignore_errors=True)
        raise StoreError(cannot_write(root, error)) from error
    return paths


def new_group(name: str) -> str:
    """The name of a group of runs that no other group has."""
    return f"{name} {time.strftime('%m-%d %H:%M')} {secrets.token_hex(2)}"


def cancel(run: Run) -> None:
    """Stop a run. What it recorded is kept, and it can be resumed.

    A worker stops within two seconds; one that gives no sign of life is killed.

    Raises:
        StoreError: the run has ended.
    """
    with _changing(run) as status:
        if status.state not in UNFINISHED:
            raise StoreError(f"{run.run_id} is {status.state}, so there is nothing to cancel")
        if has_process(status):
            if silent_for_s(status) is None or not is_worker(status.pid or 0):
                _request(run, CANCEL)
                return
            kill(status)
        _settle(run, status, State.CANCELLED, finished_at=time.time())
    _advance(run)


def pause(run: Run) -> None:
    """Stop a run where it is; `resume` lets it go on. Its slot is free meanwhile.

    Raises:
        StoreError: the run is not running or waiting.
    """
    with _changing(run) as status:
        if status.state not in ACTIVE:
            raise StoreError(f"{run.run_id} is {status.state}, so there is nothing to pause")
        if has_process(status):
            _request(run, PAUSE)
        else:
            _settle(run, status, State.PAUSED)


def resume(run: Run) -> None:
    """Put a run that stopped before its end into the queue again. It goes on from its last
    checkpoint, or from the start where it has none.

    Raises:
        StoreError: the run is active or at its end.
    """
    with _changing(run) as status:
        if status.state not in RESUMABLE:
            what = "it goes on already" if status.state in ACTIVE else "retry starts it anew"
            raise StoreError(f"{run.run_id} is {status.state}, so it cannot be resumed; {what}")
        for request in list(run.paths.control.glob("*")):
            request.unlink(missing_ok=True)
        again = {"queued_at": time.time(), "finished_at": None, "error": None, "reason": None}
        _settle(run, status, State.QUEUED, **again)
    _advance(run)


def retry(run: Run, changes: Mapping[str, Any] | None = None) -> str:
    """Submit a new run with the same configuration, or with some values changed (dotted paths).

    Raises:
        ConfigError: an unknown path, a value out of range, or as `submit`.
        StoreError: as `submit`.
    """
    config = run.config.replace(changes or {})
    name = run.run_id[16:].rpartition("-")[0]  # without date and hex
    return submit(config, run.paths.directory.parent, name)


def set_learning_rate(run: Run, value: float) -> None:
    """Change the learning rate of a running run, from its next update on.

    Raises:
        ConfigError: out of range.
        StoreError: the run is not running.
    """
    run.config.replace({"optimizer.learning_rate": value})
    with _changing(run) as status:
        if status.state is not State.RUNNING or not has_process(status):
            raise StoreError(
                f"{run.run_id} is {status.state}; the learning rate of a running run can be changed"
            )
        _request(run, LEARNING_RATE, repr(float(value)))


def requests(paths: RunPaths) -> set[str]:
    """What was asked of a worker and is not done yet."""
    try:
        return set(os.listdir(paths.control)) & {CANCEL, PAUSE, LEARNING_RATE}
    except OSError:
        return set()


def wait_until_finished(run: Run, timeout_s: float) -> State:
    """Wait for a run to stop or pause; returns its state then, or when the time is up."""
    deadline = time.monotonic() + timeout_s
    while (state := true_status(run).state) in ACTIVE and time.monotonic() < deadline:
        time.sleep(0.05)
    return state


# Deleting ---------------------------------------------------------------------------------------


def delete(run: Run) -> None:
    """Move a run into the trash of its root, from where `restore` brings it back.

    Raises:
        StoreError: a process is working on it, or the root cannot be written.
    """
    root = run.paths.directory.parent
    with _changing(run) as status:
        if has_process(status):
            raise StoreError(f"{run.run_id} is {status.state}; cancel it before deleting it")
        target = _trash(root) / run.run_id
        try:
            target.parent.mkdir(exist_ok=True)
            os.rename(run.paths.directory, target)
            os.utime(target)  # its age in the trash counts from here
        except OSError as error:
            raise StoreError(cannot_write(root, error)) from error
    empty_trash(root, TRASH_DAYS)


def restore(root: Path, run_id: str) -> Run:
    """Bring a deleted run back. Raises StoreError where it is not in the trash."""
    with locked(root):
        run_directory(_trash(root), run_id)  # checks the id
        if (root / run_id).exists():
            raise StoreError(f"{run_id} is there already; delete that one first")
        try:
            os.rename(_trash(root) / run_id, root / run_id)
        except OSError as error:
            raise StoreError(cannot_write(root, error)) from error
    run = open_run(root / run_id)
    _advance(run)
    return run


def deleted(root: Path) -> list[str]:
    """Ids of the runs in the trash, the one deleted last first."""
    trash = _trash(root)
    with contextlib.suppress(OSError):
        entries = [e for e in os.scandir(trash) if RUN_ID.fullmatch(e.name) and not e.is_symlink()]
        return [e.name for e in sorted(entries, key=lambda e: e.stat().st_mtime, reverse=True)]
    return []


def empty_trash(root: Path, older_than_days: float = 0) -> int:
    """Remove deleted runs for good. Returns how many."""
    limit = time.time() - older_than_days * 24 * 3600
    removed = 0
    with locked(root):  # from here on nobody can bring them back
        for run_id in deleted(root):
            directory = _trash(root) / run_id
            with contextlib.suppress(OSError):
                if directory.stat().st_mtime <= limit:
                    os.rename(directory, directory.with_name(f".{run_id}"))
                    removed += 1
    for directory in _trash(root).glob(".*"):  # also what a cut removal has left
        if not directory.is_symlink():
            shutil.rmtree(directory, ignore_errors=True)
    return removed


def _trash(root: Path) -> Path:
    return root / ".trash"


# Changing ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _changing(run: Run) -> Any:
    """The root's lock, with the run's true status."""
    with locked(run.paths.directory.parent):
        if not run.paths.config.is_file():
            raise StoreError(f"{run.run_id} is not there any more")
        yield true_status(run)


def _settle(run: Run, status: Status, state: State, **changes: Any) -> None:
    """Set the status of a run without a process; the root's lock is held."""
    values = {
        "state": state,
        "pid": None,
        "pid_started": None,
        "steps_per_s": None,
        "eta_s": None,
        "updated_at": time.time(),
        **changes,
    }
    try:
        write_status(run.paths, status.model_copy(update=values), durable=True)
    except OSError as error:
        raise StoreError(cannot_write(run.paths.directory.parent, error)) from error


def _request(run: Run, name: str, content: str = "") -> None:
    try:
        run.paths.control.mkdir(exist_ok=True)
        write_aside(run.paths.control / name, content)
    except OSError as error:
        raise StoreError(cannot_write(run.paths.directory.parent, error)) from error


def _advance(run: Run) -> None:
    """What stops other runs from starting is no matter of who acts on this one."""
    try:
        queue.advance(run.paths.directory.parent)
    except queue.CannotStart as error:
        if run.run_id in error.run_ids:
            raise
