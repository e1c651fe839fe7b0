"""The process of one run: `python -m bnviz.worker RUN_DIR`. Here training meets the store."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnviz import jobs, queue
from bnviz.config import ConfigError, RunConfig
from bnviz.files import NO_SPACE, write_aside
from bnviz.processes import boot_id, named_by_its_status, process_started
from bnviz.settings import OVER_BATCH
from bnviz.status import RunError, State
from bnviz.store import Run, default_root, write_status
from bnviz.trace import TraceWriter

if TYPE_CHECKING:
    from bnviz.training import Trainer

FLUSH_INTERVAL_S = 1.0
"""How long a record may exist in memory alone, and how old the page's newest point may be."""

STATUS_INTERVAL_S = 0.5

CHECKPOINT_INTERVAL_S = 10.0
"""At most this much training is repeated after a kill."""

CHECKPOINT_SHARE = 0.01
"""Of a run's time at most, for checkpoints: with large networks they come less often."""

RATE_WINDOW_S = 5.0
"""steps_per_s is the mean over this time: long enough to be steady, short enough to be current."""

NICENESS = 5
"""Below the dashboard's priority: two runs on two cores must not make the page stutter."""

RESERVE_BYTES = 64 * 1024
"""Held on the disk while a run trains, so that when the disk is full the status can still say so.
A status takes one or two blocks."""


def main(directory: Path) -> int:
    """Run what is in a run directory to its end. Returns the exit status: 0 after an orderly end
    that also started the next runs in the queue; else that is left to the shell that waits for
    this process, if it lives."""
    # Inherited along the queue, so not added to.
    niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    run = Run(directory)
    if not named_by_its_status(run):
        _say("the status of the run does not name this process, so it ends")
        return 1
    worker = Worker(run, own_process=True)
    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ending, worker.interrupt)
    worker.carry_out()
    if worker.interrupted:  # perhaps the machine goes down: no time to start anything
        return 1
    queue.advance(directory.parent)
    return 0


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
        Worker(run, train_on).carry_out()
    finally:
        torch.set_num_threads(threads)
    return run


class Worker:
    """Carries out one run, from its start or from its checkpoint, and keeps its status true."""

    def __init__(self, run: Run, train_on: Any = None, *, own_process: bool = False) -> None:
        self._run = run
        self._paths = run.paths
        self._data = train_on
        self.interrupted = False
        self._rates: list[tuple[float, int]] = []  # (monotonic time, step) of recent reports
        self._status = run.status.model_copy(
            update={
                "pid": os.getpid(),
                "pid_started": process_started(os.getpid()),
                "boot_id": boot_id(),
                "updated_at": time.time(),
            }
        )
        write_status(self._paths, self._status)
        self._starting = _RequestsWhileStarting(self, own_process)

    def interrupt(self, *_: Any) -> None:
        """Pause at the next opportunity: the system wants this process to end."""
        self.interrupted = True

    @property
    def asked_to_stop(self) -> State | None:
        """The state in which the run is to end, where someone asked for that."""
        asked = jobs.requests(self._paths)
        if jobs.CANCEL in asked:
            return State.CANCELLED
        return State.PAUSED if jobs.PAUSE in asked or self.interrupted else None

    def carry_out(self) -> None:
        """Train to the end, or to where the run is to stop. Errors end up in the status."""
        try:
            self._train()
        except Exception as error:
            self._starting.over()
            if not self._paths.config.is_file():
                _say(f"the run directory is gone: {error}")
                return
            _say(traceback.format_exc())
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                self._pause_for_space(error)
                return
            self._fail(error)
        except BaseException:  # Ctrl-C in a notebook, whose process lives on
            self._starting.over()
            with contextlib.suppress(OSError):
                self.finish(State.PAUSED, reason="it was interrupted")
            raise

    def _train(self) -> None:
        config = self._run.config

        # Loading torch and the data takes seconds, in which the run is still QUEUED.
        import torch

        from bnviz import checkpoint
        from bnviz.training import Trainer

        torch.set_num_threads(1)  # a machine runs as many such jobs as it has cores
        trainer = Trainer(config, self._data)
        if (state := checkpoint.load(self._paths.checkpoint)) is not None:
            trainer.restore(state)
        # What the status tells may be newer or older than where the run goes on from.
        summary = state["summary"] if state is not None else {}
        self._status = self._status.model_copy(update={"summary": summary})
        writer = TraceWriter(self._paths, from_step=trainer.step)
        for step, value in self._run.rate_changes():
            if step >= trainer.step:  # after the checkpoint, so the checkpoint lacks it
                trainer.planned_rates[step] = value
        if trainer.step:
            writer.add_event(
                step=trainer.step, name="resumed", value=None, wall_time_s=trainer.seconds
            )
        for leftover in self._paths.directory.glob(".*.*.*"):  # of writes that were cut
            leftover.unlink(missing_ok=True)
        self._paths.reserve.write_bytes(os.urandom(RESERVE_BYTES))
        device = trainer.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self._starting.over()
        self._extend_summary(train_examples=trainer.batches.examples)
        began = self._status.started_at or time.time()
        self.update(state=State.RUNNING, device=name, started_at=began, step=trainer.step)
        _say(f"training on {name} from step {trainer.step}")

        try:
            end = self._record(trainer, writer)
        except BaseException:
            with contextlib.suppress(OSError):
                writer.flush()  # also after an error: what was recorded is kept
            raise
        writer.flush()
        if end is not State.DIVERGED:
            self._save(trainer)
        if end is State.COMPLETED and config.model.normalization in OVER_BATCH:
            end = self._infer(trainer)
        if end is State.PAUSED and self.asked_to_stop is State.CANCELLED:
            end = State.CANCELLED  # asked meanwhile
        if end in (State.COMPLETED, State.DIVERGED):
            writer.merge(lambda: self._report(time.monotonic()))
        self.finish(end)

    def _record(self, trainer: Trainer, writer: TraceWriter) -> State:
        """Put all that training yields where it belongs; returns the state in which it ends."""
        from bnviz.identities import Check
        from bnviz.records import Diverged, Metrics, Percentiles

        flushed = 0.0  # so the first point is on the page at once
        saved, wait = time.monotonic(), CHECKPOINT_INTERVAL_S
        for record in trainer.records():
            if isinstance(record, Percentiles):
                writer.add_percentiles(**vars(record))
                continue
            if isinstance(record, Metrics):
                writer.add_metrics(**vars(record))
                self._summarize(record)
                continue
            if isinstance(record, Check):
                writer.add_check(**vars(record))
                continue
            if isinstance(record, Diverged):
                self._status = self._status.model_copy(update={"step": record.step})
                self._extend_summary(diverged_at=record.step, reason=record.reason)
                return State.DIVERGED
            if trainer.note:
                _say(trainer.note)
                trainer.note = ""
            # Progress comes after the records of a step and at least every tenth of a second.
            self._status = self._status.model_copy(update={"step": record.step})
            if (asked := self._answer(trainer, writer, record.complete)) is not None:
                return asked
            now = time.monotonic()
            if now - flushed > FLUSH_INTERVAL_S:
                writer.flush()
                flushed = now
            if now - saved > wait:
                writer.flush()  # first, so that all before the checkpoint is in the tables
                self._save(trainer)
                saved = time.monotonic()
                wait = max(CHECKPOINT_INTERVAL_S, (saved - now) / CHECKPOINT_SHARE)
            self._report(now)
        return State.COMPLETED

    def _infer(self, trainer: Trainer) -> State:
        """Measure what `inference.json` tells; returns the state in which the run ends. A run that
        is stopped or killed here goes on from its last step, and measures anew."""
        from bnviz.inference import Stopped, accuracies

        def stop() -> bool:
            self._report(time.monotonic())
            return self.asked_to_stop is not None

        try:
            measured = accuracies(trainer, stop)
        except Stopped:
            return self.asked_to_stop or State.PAUSED
        write_aside(self._paths.inference, measured.model_dump_json(indent=2) + "\n", durable=True)
        return State.COMPLETED

    def _save(self, trainer: Trainer) -> None:
        from bnviz import checkpoint

        state = {**trainer.state(), "summary": self._status.summary}
        checkpoint.save(self._paths.checkpoint, state)

    def _answer(self, trainer: Trainer, writer: TraceWriter, complete: bool) -> State | None:
        """Do what was asked of this run; returns a state where it is to end."""
        asked = jobs.requests(self._paths)
        if jobs.LEARNING_RATE in asked and complete and trainer.step > writer.recorded_to:
            self._change_learning_rate(trainer, writer)
        return self.asked_to_stop

    def _change_learning_rate(self, trainer: Trainer, writer: TraceWriter) -> None:
        request = self._paths.control / jobs.LEARNING_RATE
        try:
            value = float(request.read_text(encoding="utf-8"))
            self._run.config.replace({"optimizer.learning_rate": value})
        except (OSError, ValueError, ConfigError) as error:
            _say(f"not a learning rate: {error}")
        else:
            # On the disk before it takes effect, so that a continued run repeats it there.
            writer.add_event(
                step=trainer.step, name="learning_rate", value=value, wall_time_s=trainer.seconds
            )
            writer.flush()
            trainer.set_learning_rate(value)
            _say(f"learning rate {value} from step {trainer.step} on")
        request.unlink(missing_ok=True)

    # Status -------------------------------------------------------------------------------------

    def finish(self, state: State, **changes: Any) -> None:
        with contextlib.suppress(OSError):
            self._paths.reserve.unlink(missing_ok=True)
        ended: dict[str, Any] = {"finished_at": time.time()}
        if state is State.PAUSED:
            ended = {"pid": None}
            if self.interrupted:
                ended["reason"] = "the system asked its process to end"
        self.update(durable=True, state=state, steps_per_s=None, eta_s=None, **{**ended, **changes})
        _say(f"{state} at step {self._status.step}: {self._status.summary}")

    def update(self, durable: bool = False, **changes: Any) -> None:
        self._status = self._status.model_copy(update={**changes, "updated_at": time.time()})
        write_status(self._paths, self._status, durable=durable)

    def _pause_for_space(self, error: OSError) -> None:
        """The tables and checkpoint on the disk are whole, and what they lack comes again when the
        run goes on from there."""
        reason = f"{os.strerror(error.errno or 0)}: make space, then resume"
        with contextlib.suppress(OSError):  # then it is LOST, and can be resumed just the same
            self.finish(State.PAUSED, reason=reason)

    def _fail(self, error: Exception) -> None:
        """End as FAILED, with the traceback of the exception being handled."""
        what = RunError(
            type=type(error).__name__, message=_in_words(error), traceback=traceback.format_exc()
        )
        with contextlib.suppress(OSError):
            self.finish(State.FAILED, error=what)

    def _report(self, now: float) -> None:
        """Write where the run stands, unless that was just done."""
        if self._rates and now - self._rates[-1][0] <= STATUS_INTERVAL_S:
            return
        step = self._status.step
        self._rates = [r for r in self._rates if now - r[0] <= RATE_WINDOW_S] + [(now, step)]
        since, from_step = self._rates[0]
        rate = (step - from_step) / (now - since) if now > since else None
        eta_s = (self._status.steps - step) / rate if rate else None
        self.update(steps_per_s=rate, eta_s=eta_s)

    def _summarize(self, record: Any) -> None:
        if record.split == "train":
            self._extend_summary(train_loss=record.loss)
            return
        best = max(record.accuracy, self._status.summary.get("best_test_accuracy", 0.0))
        self._extend_summary(
            test_loss=record.loss, test_accuracy=record.accuracy, best_test_accuracy=best
        )

    def _extend_summary(self, **values: Any) -> None:
        # A non-finite number is not valid JSON; its place is the tables.
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or abs(v) < 1e38}
        summary = {**self._status.summary, **finite}
        self._status = self._status.model_copy(update={"summary": summary})


class _RequestsWhileStarting:
    """Answers requests before training begins: imports cannot be interrupted.

    A worker process ends at once. In `run_here` the caller's process must live, so there the
    request is answered when training begins.
    """

    def __init__(self, worker: Worker, own_process: bool) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._over = threading.Event()
        if own_process:
            threading.Thread(target=self._watch, daemon=True).start()

    def over(self) -> None:
        """Training begins, or the start has failed: from here on others watch for requests."""
        with self._lock:
            self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            with self._lock:
                if self._over.is_set() or (state := self._worker.asked_to_stop) is None:
                    continue
                # Nothing is recorded yet that would have to be closed.
                self._worker.finish(state)
                os._exit(1)  # the shell that waits advances the queue


def _say(text: str) -> None:
    """To the log. A full disk must not keep the status from saying so."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _in_words(error: Exception) -> str:
    """What a person understands, and what to do."""
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the GPU's memory is full ({error}); choose a smaller network or batch, end other "
            "programs that use the GPU, or train on the CPU (training.device = cpu)"
        )
    if isinstance(error, MemoryError):
        return "the machine's memory is full; end other programs, or choose a smaller network"
    if isinstance(error, PermissionError):
        return f"{error}; give this user the right to write there, then resume"
    return str(error)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m bnviz.worker RUN_DIR")
    raise SystemExit(main(Path(sys.argv[1])))
