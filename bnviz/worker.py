"""The process of one run: `python -m bnviz.worker RUN_DIR`. Here training meets the store."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from bnviz.jobs import cancel_requested
from bnviz.status import RunError, State, Status
from bnviz.store import Run, RunPaths, TraceWriter, write_status

FLUSH_INTERVAL_S = 1.0
"""How long a record may exist in memory alone, and how old the page's newest point may be."""

STATUS_INTERVAL_S = 0.5

RATE_WINDOW_S = 5.0
"""steps_per_s is the mean over this time: long enough to be steady, short enough to be current."""

NICENESS = 5
"""Below the dashboard's priority: two runs on two cores must not make the page stutter."""

SUBMIT_TIMEOUT_S = 30.0


def main(directory: Path) -> int:
    """Run what is in a run directory to its end. Returns the exit status: 0 unless it failed."""
    os.nice(NICENESS)
    worker = Worker(RunPaths(directory))
    try:
        worker.run()
    except Exception as error:
        traceback.print_exc()
        worker.fail(error)
        return 1
    return 0


class Worker:
    """Carries out one run and keeps its status true."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._status = _wait_for_submit(paths)
        self._rates: list[tuple[float, int]] = []  # (monotonic time, step) of recent reports
        self._starting = _CancelWhileStarting(self, paths)

    def run(self) -> None:
        config = Run(self._paths.directory).config

        # Loading torch and the data takes seconds, in which the run is still QUEUED.
        import torch

        from bnviz.training import Trainer

        torch.set_num_threads(1)  # a machine runs as many such jobs as it has cores
        trainer = Trainer(config)
        self._starting.over()
        device = trainer.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.update(state=State.RUNNING, device=name, started_at=time.time())
        print(f"training on {name} for {config.training.steps} steps", flush=True)

        writer = TraceWriter(self._paths)
        try:
            end = self._record(trainer.records(), writer)
        finally:
            writer.flush()  # also after an error: what was recorded is kept
        if end is not State.CANCELLED:
            writer.merge()
        self.finish(end)

    def fail(self, error: Exception) -> None:
        """End as FAILED, with the traceback of the exception being handled."""
        self._starting.over()
        what = RunError(
            type=type(error).__name__, message=str(error), traceback=traceback.format_exc()
        )
        self.finish(State.FAILED, error=what)

    def finish(self, state: State, **changes: Any) -> None:
        self.update(state=state, steps_per_s=None, eta_s=None, finished_at=time.time(), **changes)
        print(f"{state} at step {self._status.step}: {self._status.summary}", flush=True)

    def update(self, **changes: Any) -> None:
        self._status = self._status.model_copy(update={**changes, "updated_at": time.time()})
        write_status(self._paths, self._status)

    def _record(self, records: Any, writer: TraceWriter) -> State:
        from bnviz.training import Diverged, Metrics, Percentiles

        flushed = reported = 0.0  # so the first point is on the page at once
        for record in records:
            if isinstance(record, Percentiles):
                writer.add_percentiles(**vars(record))
                continue
            if isinstance(record, Metrics):
                writer.add_metrics(**vars(record))
                self._summarize(record)
                continue
            if isinstance(record, Diverged):
                self._summarize_divergence(record)
                return State.DIVERGED
            # Progress comes after the records of a step and at least every tenth of a second.
            self._status = self._status.model_copy(update={"step": record.step})
            if cancel_requested(self._paths):
                return State.CANCELLED
            now = time.monotonic()
            if now - flushed > FLUSH_INTERVAL_S:
                writer.flush()
                flushed = now
            if now - reported > STATUS_INTERVAL_S:
                self._report(now)
                reported = now
        return State.COMPLETED

    def _report(self, now: float) -> None:
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

    def _summarize_divergence(self, record: Any) -> None:
        self._status = self._status.model_copy(update={"step": record.step})
        self._extend_summary(diverged_at=record.step, reason=record.reason)

    def _extend_summary(self, **values: Any) -> None:
        # A non-finite number is not valid JSON; its place is the tables.
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or abs(v) < 1e38}
        summary = {**self._status.summary, **finite}
        self._status = self._status.model_copy(update={"summary": summary})


class _CancelWhileStarting:
    """Ends the process when a cancel comes before training: imports cannot be interrupted."""

    def __init__(self, worker: Worker, paths: RunPaths) -> None:
        self._worker = worker
        self._paths = paths
        self._lock = threading.Lock()
        self._over = False
        threading.Thread(target=self._watch, daemon=True).start()

    def over(self) -> None:
        """Training begins, or the start has failed: from here on others watch for a cancel."""
        with self._lock:
            self._over = True

    def _watch(self) -> None:
        while True:
            with self._lock:
                if self._over:
                    return
                if cancel_requested(self._paths):
                    self._worker.finish(State.CANCELLED)
                    os._exit(0)  # nothing is recorded yet, so there is nothing to close
            time.sleep(0.1)


def _wait_for_submit(paths: RunPaths) -> Status:
    deadline = time.monotonic() + SUBMIT_TIMEOUT_S
    while not paths.status.exists():
        if time.monotonic() > deadline:
            raise SystemExit(
                f"no {paths.status}: what started this worker ended before it was done"
            )
        time.sleep(0.01)
    return Run(paths.directory).status


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m bnviz.worker RUN_DIR")
    raise SystemExit(main(Path(sys.argv[1])))
