"""The process of one run, or of some that train as one program: `python -m bnviz.worker RUN_DIR…`.
Here training meets the store."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnviz import jobs, queue
from bnviz.config import RunConfig
from bnviz.processes import boot_id, named_by_its_status, process_started
from bnviz.reporter import Reporter
from bnviz.status import State
from bnviz.store import Run, StoreError, default_root, write_status

if TYPE_CHECKING:
    from bnviz.recorder import Recorder

NICENESS = 5
"""Below the dashboard's priority: two runs on two cores must not make the page stutter."""


def main(directories: Sequence[Path]) -> int:
    """Carry out what is in run directories of one root. Returns the exit status: 0 after an orderly
    end that also started the next runs in the queue; else that is left to the shell that waits for
    this process, if it lives."""
    # Inherited along the queue, so not added to.
    niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    with contextlib.ExitStack() as files:
        reporters = _reporters(directories, files)
        if not reporters:
            return 1

        def interrupt(*_: Any) -> None:
            for reporter in reporters:
                reporter.interrupted = True

        for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(ending, interrupt)
        carry_out(reporters, own_process=True)
    # Perhaps the machine goes down, so there is no time to start anything; or a status still tells
    # that this process works on it.
    if reporters[0].interrupted or not all(reporter.ended for reporter in reporters):
        return 1
    queue.advance(directories[0].parent)
    return 0


def _reporters(directories: Sequence[Path], files: contextlib.ExitStack) -> list[Reporter]:
    """Of those runs whose status names this process. What it prints by itself is in the log of the
    first; the other logs are opened in `files`."""
    reporters = []
    for number, directory in enumerate(directories):
        run = Run(directory)
        try:
            if not named_by_its_status(run):
                print(f"{run.run_id}: its status does not name this process", flush=True)
                continue
            log = None
            if number:
                log = files.enter_context(run.paths.log.open("a", encoding="utf-8"))
            reporters.append(Reporter(run, log))
        except (OSError, StoreError) as error:
            print(f"{run.run_id}: {error}", flush=True)
    return reporters


def run_here(
    config: RunConfig, root: Path | None = None, name: str = "run", *, train_on: Any = None
) -> Run:
    """Carry out a run in this very process, past the queue, and return it when it has ended.

    It is stored, and can be watched, cancelled and paused from elsewhere, as any other run.

    Args:
        train_on: the data set (`bnviz.data.ImageData`), if it is loaded already.

    Raises:
        StoreError: the root cannot be written.
    """
    root = root or default_root()
    with queue.locked(root):
        run = Run(jobs.create(config, root, name).directory)
        mine = {"pid": os.getpid(), "pid_started": process_started(os.getpid())}
        write_status(run.paths, run.status.model_copy(update={**mine, "boot_id": boot_id()}))
    import torch

    threads = torch.get_num_threads()
    try:
        carry_out([Reporter(run)], train_on)
    finally:
        torch.set_num_threads(threads)
    return run


def carry_out(
    reporters: Sequence[Reporter], train_on: Any = None, *, own_process: bool = False
) -> None:
    """Train runs to their ends, or to where they are to stop. Errors end up in their statuses.

    Args:
        reporters: one, or of runs whose configurations have the same `bnviz.together.key`.
        train_on: the data set (`bnviz.data.ImageData`), if it is loaded already.
        own_process: this process may end with the runs.
    """
    starting = _RequestsWhileStarting(reporters, own_process)
    going: dict[int, Recorder] = {}
    try:
        # Loading torch and the data takes seconds, in which the runs are still QUEUED.
        import torch

        from bnviz.recorder import Recorder

        torch.set_num_threads(1)  # a machine runs as many such jobs as it has cores
        for reporter in reporters:
            try:
                recorder = Recorder(reporter, train_on)
            except Exception as error:
                with starting.lock:
                    reporter.finish_with(error)
            else:
                going[len(going)] = recorder
                train_on = recorder.trainer.source
        starting.over()
        if going:
            _train(going, reporters)
    except Exception as error:  # of what they share
        starting.over()
        for recorder in going.values():
            recorder.keep()
        for reporter in reporters:
            if not reporter.finishing:
                reporter.finish_with(error)
    except BaseException:  # Ctrl-C in a notebook, whose process lives on
        starting.over()
        for recorder in going.values():
            recorder.keep()
        for reporter in reporters:
            with contextlib.suppress(OSError):
                reporter.finish(State.PAUSED, reason="it was interrupted")
        raise
    for reporter in reporters:
        reporter.repeat()


def _train(going: dict[int, Recorder], reporters: Sequence[Reporter]) -> None:
    """Train runs by number, to their ends; they leave `going` there."""
    from bnviz.training import Training

    training = Training([recorder.trainer for recorder in going.values()])

    def others(closing: int | None = None) -> None:
        for number, recorder in list(going.items()):
            if number != closing:
                do(number, recorder.reporter.report)
        for reporter in reporters:
            reporter.repeat()

    def do(number: int, what: Callable[..., State | None], *arguments: object) -> None:
        """Something with one of the runs; the others go on where it fails or ends."""
        recorder = going[number]
        try:
            if (end := what(*arguments)) is None:
                return
            training.leave(number)
            recorder.close(end, partial(others, number))
        except Exception as error:
            training.leave(number)
            recorder.keep()
            recorder.reporter.finish_with(error)
        # Nothing of it is held on to: its tables may be another process's from now on.
        going.pop(number, None)

    for number, recorder in list(going.items()):
        do(number, recorder.begin, going)
    for number, record in training.records():
        if number in going:
            do(number, going[number].take, record)
        if len(going) < len(reporters):
            for reporter in reporters:
                reporter.repeat()
    for number in list(going):
        do(number, lambda: State.COMPLETED)


class _RequestsWhileStarting:
    """Answers requests before training begins: imports cannot be interrupted.

    A worker process ends as soon as all of its runs are asked to stop. In `run_here` the caller's
    process must live, so there the request is answered when training begins, as it is where others
    are to train.
    """

    def __init__(self, reporters: Sequence[Reporter], own_process: bool) -> None:
        self._reporters = reporters
        self.lock = threading.Lock()
        """Held by who says the last word on a run meanwhile."""
        self._over = threading.Event()
        if own_process:
            threading.Thread(target=self._watch, daemon=True).start()

    def over(self) -> None:
        """Training begins, or the start has failed: from here on others watch for requests."""
        with self.lock:
            self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            with self.lock:
                asked = {r: r.asked_to_stop for r in self._reporters if not r.finishing}
                if self._over.is_set() or not asked or None in asked.values():
                    continue
                # Nothing is recorded yet that would have to be closed.
                for reporter, state in asked.items():
                    assert state
                    with contextlib.suppress(OSError):
                        reporter.finish(state)
                os._exit(1)  # the shell that waits advances the queue


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m bnviz.worker RUN_DIR…")
    raise SystemExit(main([Path(word) for word in sys.argv[1:]]))
