"""The queue of a root: which runs wait, how many train at once, and starting the next ones.

It is no process. Whoever changes something calls `advance`: a submit, a resume, a worker that ends,
and, where a worker was killed, the shell that waits for it. The truth is in the statuses alone, and
a lock on the root keeps two callers apart; the kernel drops it with its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnviz import together
from bnviz.config import RunConfig
from bnviz.files import version, write_aside
from bnviz.processes import (
    boot_id,
    has_process,
    process_group,
    process_started,
    true_status,
)
from bnviz.status import ACTIVE, State
from bnviz.store import Run, StoreError, list_run_ids, write_status

SLOTS_VARIABLE = "BNVIZ_SLOTS"
MAX_SLOTS = 1024

TOGETHER_ON = frozenset({"cuda"})
"""Kinds of device on which runs that can train as one program do. A CPU gains a half at best, and
there a run by itself is the same to the bit whenever it is repeated."""

NEAR = 0.05
"""Of a run's steps, how far one may be ahead of another with which it is to train as one program,
and for which it waits: enough for what checkpoints lie apart."""

GUARD = 'root=$1; shift; "$0" -m bnviz.worker "$@" || exec "$0" -m bnviz.queue "$root" "$@"'
"""Waits for the worker; its arguments are the root and the run directories. An orderly end advances
the queue by itself; after any other, also a kill that nothing can catch, this does. A shell needs
about a megabyte for that."""

MIN_FREE_BYTES = 50_000_000
"""Nothing starts on a disk with less: a run of Figure 1 takes 25 MB."""

_guards: list[subprocess.Popen[bytes]] = []
"""Started here, kept only so that the finished ones can be reaped."""


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the root's lock: statuses of runs without a process change only under it.

    Raises:
        StoreError: the root cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StoreError(cannot_write(root, error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def cannot_write(root: Path, error: OSError) -> str:
    return (
        f"cannot write runs to {root.absolute()}: {error.strerror}; choose a folder that can "
        "be written with --root or BNVIZ_ROOT"
    )


class CannotStart(StoreError):
    """Runs whose process could not be started; they stay in the queue."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__(next(iter(problems.values())))
        self.run_ids = set(problems)


def held_up(root: Path) -> str | None:
    """Why nothing starts though there are free slots; None where nothing is in the way."""
    try:
        free = shutil.disk_usage(root).free
    except OSError:
        return None
    if free >= MIN_FREE_BYTES:
        return None
    return f"the disk has {free / 1e6:.0f} MB free, and runs start from {MIN_FREE_BYTES / 1e6:.0f}"


def waiting(root: Path) -> list[Run]:
    """Runs that wait for a slot, the next one first."""
    return _survey(root)[0]


def advance(root: Path, ended: Collection[str] = ()) -> list[str]:
    """Start waiting runs while there are free slots. Returns the ids of those started.

    Args:
        ended: runs whose process is this one, which ends now.

    Raises:
        CannotStart: for some runs; what else can start has started.
        StoreError: the root cannot be written.
    """
    with locked(root):
        return advance_locked(root, ended)


def advance_locked(root: Path, ended: Collection[str] = ()) -> list[str]:
    """`advance` for a caller that holds the root's lock."""
    queue, busy = _survey(root, ended)
    if not queue or held_up(root):
        return []
    limits = slots(root)
    started: list[str] = []
    problems: dict[str, str] = {}
    for run in queue:
        if all(busy[kind] >= limit for kind, limit in limits.items()):
            break
        if run.run_id in started:
            continue
        try:
            kind = device_kind(run.config)
            assert run.status
        except StoreError:
            continue  # its page says what is wrong with it
        if busy[kind] >= limits[kind]:
            continue
        runs = _together(run, queue) if kind in TOGETHER_ON else [run]
        try:
            try:
                _start(runs)
            except StoreError:  # of which of them?
                runs = [run]
                _start(runs)
        except StoreError as error:
            problems[run.run_id] = str(error)
        else:
            busy[kind] += 1
            started += [each.run_id for each in runs]
    if problems:
        raise CannotStart(problems)
    return started


def _together(first: Run, queue: list[Run]) -> list[Run]:
    """A waiting run, and those behind it that can train as one program with it."""
    key = together.key(first.config)
    if key is None:
        return [first]
    runs = [first]
    step, far = first.status.step, NEAR * first.config.training.steps
    most = together.at_most(first.config)
    for run in queue[queue.index(first) + 1 :]:
        if len(runs) == most:
            break
        with contextlib.suppress(StoreError):
            if together.key(run.config) == key and abs(run.status.step - step) <= far:
                runs.append(run)
    return runs


def _survey(root: Path, ended: Collection[str] = ()) -> tuple[list[Run], Counter[str]]:
    """Waiting runs in order, and how many slots of each kind are taken, one by each process."""
    line: list[tuple[float, str]] = []
    busy: set[tuple[str, int]] = set()
    for run_id in list_run_ids(root):
        run = Run(root / run_id)
        state, pid, queued_at = _glance(run)
        if state == State.QUEUED and pid is None:
            line.append((queued_at, run_id))
        elif state in ACTIVE and run_id not in ended:
            with contextlib.suppress(StoreError):
                if has_process(status := true_status(run)):
                    busy.add((device_kind(run.config), process_group(status)))
    return [Run(root / run_id) for _, run_id in sorted(line)], Counter(kind for kind, _ in busy)


def _glance(run: Run) -> tuple[str, Any, float]:
    """State, pid and time of queueing."""
    path = run.paths.status
    try:
        return _glance_at(path, version(path))
    except OSError:  # at another time it may be read
        return "", None, 0.0


@lru_cache(maxsize=50_000)
def _glance_at(path: Path, version: tuple[int, int, int]) -> tuple[str, Any, float]:
    """What a version of a status says. Thousands are looked at, so each is read once, and what does
    not matter here is not validated."""
    try:
        status = json.loads(path.read_bytes())
        return str(status["state"]), status.get("pid"), float(status.get("queued_at") or 0)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        return "", None, 0.0
    except RecursionError:  # brackets without end
        return "", None, 0.0


def _start(runs: Sequence[Run]) -> None:
    """Start a process for runs that wait."""
    waiting = [run.status for run in runs]
    root = runs[0].paths.directory.parent.absolute()
    directories = [run.paths.directory.absolute() for run in runs]
    try:
        with open(runs[0].paths.log, "ab") as log:
            guard = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, sys.executable, root, *directories],
                cwd=Path(__file__).resolve().parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise StoreError(
            f"cannot start {runs[0].run_id}: {error.strerror}; it stays in the queue"
        ) from error
    _guards[:] = [other for other in _guards if other.poll() is None] + [guard]
    # The worker waits until the statuses name the guard, its parent, and from then on is the only
    # one to write them. So there is no moment at which a run is shown without its process.
    changes = {
        "pid": guard.pid,
        "pid_started": process_started(guard.pid),
        "boot_id": boot_id(),
        "updated_at": time.time(),
    }
    try:
        for run, status in zip(runs, waiting, strict=True):
            write_status(run.paths, status.model_copy(update=changes))
    except OSError as error:
        os.killpg(guard.pid, signal.SIGKILL)
        for run, status in zip(runs, waiting, strict=True):
            with contextlib.suppress(OSError):  # then it is LOST, and can be resumed
                write_status(run.paths, status)
        raise StoreError(cannot_write(root, error)) from error


# Slots ------------------------------------------------------------------------------------------


def device_kind(config: RunConfig) -> str:
    """Whose slot a run takes, "cpu" or "cuda", found without loading torch. Without a GPU, a run
    that wants one takes a processor's and fails there in words."""
    return "cuda" if has_cuda() and config.training.device != "cpu" else "cpu"


@cache
def has_cuda() -> bool:
    """Whether there is an NVIDIA device and a torch that is built for it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None or not Path("/dev/nvidiactl").exists():
        return False
    version = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return "cuda: Optional[str] = None" not in version and "cuda = None" not in version


def slots(root: Path) -> dict[str, int]:
    """How many runs train at once, by kind of device: as set, else $BNVIZ_SLOTS, else as many
    single-threaded runs as there are cores, and one on a GPU."""
    limits = {"cpu": len(os.sched_getaffinity(0))} | ({"cuda": 1} if has_cuda() else {})
    everywhere = os.environ.get(SLOTS_VARIABLE, "")
    if everywhere.isdecimal() and 1 <= int(everywhere) <= MAX_SLOTS:
        limits = dict.fromkeys(limits, int(everywhere))
    return limits | {kind: n for kind, n in _chosen_slots(root).items() if kind in limits}


def set_slots(root: Path, count: int | None, kind: str = "cpu") -> None:
    """Change how many runs train at once on a kind of device, None for the default; more start at
    once.

    Raises:
        StoreError: not from 1 to MAX_SLOTS, no such device, or the root cannot be written.
    """
    if count is not None and not 1 <= count <= MAX_SLOTS:
        raise StoreError(f"slots = {count}: must be a whole number from 1 to {MAX_SLOTS:,}")
    if kind not in slots(root):
        raise StoreError(f"device = {kind}: this machine has {', '.join(slots(root))}")
    with locked(root):
        chosen = _chosen_slots(root)
        chosen.pop(kind, None)
        try:
            text = json.dumps(chosen if count is None else {**chosen, kind: count})
            write_aside(root / ".slots", text)
        except OSError as error:
            raise StoreError(cannot_write(root, error)) from error
        advance_locked(root)


def _chosen_slots(root: Path) -> dict[str, int]:
    try:
        chosen = json.loads((root / ".slots").read_text(encoding="utf-8"))
        return {k: n for k, n in chosen.items() if type(n) is int and 1 <= n <= MAX_SLOTS}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


if __name__ == "__main__":
    advance(Path(sys.argv[1]), ended={Path(word).name for word in sys.argv[2:]})
