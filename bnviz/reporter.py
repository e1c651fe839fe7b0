"""What is told of a run, and what is asked of it, in the process that works on it."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from typing import Any, TextIO

from bnviz import jobs
from bnviz.files import NO_SPACE
from bnviz.processes import boot_id, process_started
from bnviz.status import RunError, State
from bnviz.store import Run, write_status

STATUS_INTERVAL_S = 0.5

RATE_WINDOW_S = 5.0
"""steps_per_s is the mean over this time: long enough to be steady, short enough to be current."""

RESERVE_BYTES = 64 * 1024
"""Held on the disk while a run trains, so that when the disk is full the status can still say so.
A status takes one or two blocks."""


class Reporter:
    """The one that writes a run's status, from now on until `ended`.

    Args:
        log: where `say` writes; None for the standard output.
    """

    def __init__(self, run: Run, log: TextIO | None = None) -> None:
        self.run = run
        self.interrupted = False
        """The system wants this process to end, so the run is to pause."""
        self._paths = run.paths
        self._log = log
        self._rates: list[tuple[float, int]] = []  # (monotonic time, step) of recent reports
        self.finishing = False
        """Whether the last word was to be said."""
        self.ended = False
        """Whether it is on the disk."""
        self._repeated = 0.0
        self.status = run.status.model_copy(
            update={
                "pid": os.getpid(),
                "pid_started": process_started(os.getpid()),
                "boot_id": boot_id(),
                "updated_at": time.time(),
            }
        )
        write_status(self._paths, self.status)

    @property
    def asked_to_stop(self) -> State | None:
        """The state in which the run is to end, where someone asked for that."""
        asked = jobs.requests(self._paths)
        if jobs.CANCEL in asked:
            return State.CANCELLED
        return State.PAUSED if jobs.PAUSE in asked or self.interrupted else None

    def say(self, text: str) -> None:
        """To the log. A full disk must not keep the status from saying so."""
        with contextlib.suppress(OSError):
            print(_as_text(text), file=self._log, flush=True)

    def change(self, **values: Any) -> None:
        """Values of the status that are written with the next report."""
        self.status = self.status.model_copy(update=values)

    def write(self, durable: bool = False, **values: Any) -> None:
        """Write the status, with these values changed."""
        self.change(**values, updated_at=time.time())
        write_status(self._paths, self.status, durable=durable)

    def report(self) -> None:
        """Write where the run stands, unless that was just done or it ends."""
        now = time.monotonic()
        if self.finishing:
            return
        if self._rates and now - self._rates[-1][0] <= STATUS_INTERVAL_S:
            return
        step = self.status.step
        self._rates = [r for r in self._rates if now - r[0] <= RATE_WINDOW_S] + [(now, step)]
        since, from_step = self._rates[0]
        rate = (step - from_step) / (now - since) if now > since else None
        eta_s = (self.status.steps - step) / rate if rate else None
        self.write(steps_per_s=rate, eta_s=eta_s)

    def summarize(self, metrics: Any) -> None:
        """Put a record of metrics into the summary."""
        if metrics.split == "train":
            self.extend_summary(train_loss=metrics.loss)
            return
        best = max(metrics.accuracy, self.status.summary.get("best_test_accuracy", 0.0))
        self.extend_summary(
            test_loss=metrics.loss, test_accuracy=metrics.accuracy, best_test_accuracy=best
        )

    def extend_summary(self, **values: Any) -> None:
        # A non-finite number is not valid JSON; its place is the tables.
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or abs(v) < 1e38}
        self.change(summary={**self.status.summary, **finite})

    def finish(self, state: State, **changes: Any) -> None:
        """The last word on this run; nothing where that was said.

        Raises:
            OSError: it cannot be written; `repeat` tries again.
        """
        if self.ended:
            return
        with contextlib.suppress(OSError):
            self._paths.reserve.unlink(missing_ok=True)
        ended: dict[str, Any] = {"finished_at": time.time()}
        if state is State.PAUSED:
            ended = {"pid": None}
            if self.interrupted:
                ended["reason"] = "the system asked its process to end"
        self.change(state=state, steps_per_s=None, eta_s=None, **{**ended, **changes})
        self.finishing = True
        self.write(durable=True)
        self.ended = True
        self.say(f"{state} at step {self.status.step}: {self.status.summary}")

    def finish_with(self, error: Exception) -> None:
        """The last word after an exception, which is being handled; nothing where that was said."""
        if self.ended:
            return
        if not self._paths.config.is_file():
            self.ended = self.finishing = True
            self.say(f"the run directory is gone: {error}")
            return
        self.say(traceback.format_exc())
        if self.interrupted:  # as were the processes that it needs: it goes on from its checkpoint
            with contextlib.suppress(OSError):
                self.finish(State.PAUSED)
            return
        # Where it cannot be written, the run is LOST when its process ends, and can be resumed.
        with contextlib.suppress(OSError):
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                # The tables and checkpoint on the disk are whole, and what they lack comes again
                # when the run goes on from there.
                reason = f"{os.strerror(error.errno or 0)}: make space, then resume"
                self.finish(State.PAUSED, reason=reason)
                return
            what = RunError(
                type=type(error).__name__,
                message=_as_text(_in_words(error)),
                traceback=_as_text(traceback.format_exc()),
            )
            self.finish(State.FAILED, error=what)

    def repeat(self) -> None:
        """Try the last word again, where it could not be written and that was not just tried."""
        now = time.monotonic()
        if self.finishing and not self.ended and now - self._repeated > STATUS_INTERVAL_S:
            self._repeated = now
            with contextlib.suppress(OSError):
                self.write(durable=True)
                self.ended = True


def _as_text(text: str) -> str:
    """The same, where it has names of files whose bytes are no text."""
    return text.encode(errors="backslashreplace").decode()


def _in_words(error: Exception) -> str:
    """What a person understands, and what to do."""
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the GPU's memory is full ({error}); choose a smaller network or batch, end other "
            "programs that use the GPU, or train on the CPU (training.device = cpu)"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return (
            "the machine's memory is full; end other programs, or choose a smaller network or batch"
        )
    if isinstance(error, PermissionError):
        return f"{error}; give this user the right to write there, then resume"
    return str(error)
