"""Recording a run: what its training yields goes to its tables, its checkpoint and its status."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sized
from typing import Any

import torch

from bnviz import checkpoint, jobs, predictions
from bnviz.config import ConfigError
from bnviz.evaluation import Stopped
from bnviz.files import write_aside
from bnviz.inference import accuracies
from bnviz.predictions import PredictionsError
from bnviz.probabilities import probabilities
from bnviz.records import Diverged, Metrics, Percentiles, Progress, Record
from bnviz.reporter import RESERVE_BYTES, Reporter
from bnviz.settings import OVER_BATCH
from bnviz.status import AT_END, State
from bnviz.trace import TraceWriter
from bnviz.trainer import Trainer

FLUSH_INTERVAL_S = 1.0
"""How long a record may exist in memory alone, and how old the page's newest point may be."""

FLUSH_SHARE = 0.2
"""Of the time of a process at most, for this: where it trains many runs, each is flushed less
often."""

CHECKPOINT_INTERVAL_S = 10.0
"""At most this much training is repeated after a kill."""

CHECKPOINT_SHARE = 0.01
"""The same for checkpoints: with large networks they come less often."""


class Recorder:
    """Records one run, from its start or from its checkpoint: `begin`, `take` many times, `close`.

    Args:
        train_on: the data set (`bnviz.data.ImageData`), if it is loaded already.
    """

    def __init__(self, reporter: Reporter, train_on: Any = None) -> None:
        self.reporter = reporter
        run = reporter.run
        self._paths = run.paths
        self.trainer = trainer = Trainer(run.config, train_on)
        if (state := checkpoint.load(self._paths.checkpoint)) is not None:
            trainer.restore(state)
        # What the status tells may be newer or older than where the run goes on from.
        reporter.change(summary=state["summary"] if state is not None else {})
        self._writer = TraceWriter(self._paths, from_step=trainer.step)
        for step, value in run.rate_changes():
            if step >= trainer.step:  # after the checkpoint, so the checkpoint lacks it
                trainer.planned_rates[step] = value
        if trainer.step:
            self._writer.add_event(
                step=trainer.step, name="resumed", value=None, wall_time_s=trainer.seconds
            )
        for leftover in self._paths.directory.glob(".*.*.*"):  # of writes that were cut
            leftover.unlink(missing_ok=True)
        self._paths.reserve.write_bytes(os.urandom(RESERVE_BYTES))
        self._told_of = 0, 0
        # When each is next, on the clock of time.monotonic. The first point is on the page at once.
        self._flush_at, self._save_at = 0.0, time.monotonic() + CHECKPOINT_INTERVAL_S

    def begin(self, going: Sized) -> None:
        """The run is RUNNING, as one of those that are in `going`, now and later."""
        self._going = going
        device, step = self.trainer.device, self.trainer.step
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.reporter.extend_summary(train_examples=self.trainer.batches.examples)
        began = self.reporter.status.started_at or time.time()
        self.reporter.write(state=State.RUNNING, device=name, started_at=began, step=step)
        others = f" together with {len(going) - 1} others" if len(going) > 1 else ""
        self.reporter.say(f"training on {name} from step {step}{others}")

    def take(self, record: Record) -> State | None:
        """Put what training yields where it belongs; returns a state where the run is to end."""
        if isinstance(record, Percentiles):
            self._writer.add_percentiles(**vars(record))
        elif isinstance(record, Metrics):
            self._writer.add_metrics(**vars(record))
            self.reporter.summarize(record)
        elif isinstance(record, Progress):
            return self._progress(record)
        elif isinstance(record, Diverged):
            self.reporter.change(step=record.step)
            self.reporter.extend_summary(diverged_at=record.step, reason=record.reason)
            return State.DIVERGED
        else:
            self._writer.add_check(**vars(record))
        return None

    def _progress(self, record: Progress) -> State | None:
        # Comes after the records of a step and at least every tenth of a second.
        if self.trainer.note:
            self.reporter.say(self.trainer.note)
            self.trainer.note = ""
        self._tell_of_images()
        self.reporter.change(step=record.step)
        if jobs.LEARNING_RATE in jobs.requests(self._paths) and record.complete:
            self._change_learning_rate()
        if (asked := self.reporter.asked_to_stop) is not None:
            return asked
        now = time.monotonic()
        if now > self._flush_at:
            self._writer.flush()
            self._flush_at = self._next(now, FLUSH_INTERVAL_S, FLUSH_SHARE)
        if now > self._save_at:
            self._writer.flush()  # first, so that all before the checkpoint is in the tables
            self._save()
            self._save_at = self._next(now, CHECKPOINT_INTERVAL_S, CHECKPOINT_SHARE)
        self.reporter.report()
        return None

    def _tell_of_images(self) -> None:
        """Of those that cannot be read, or are smaller than the crops."""
        source = self.trainer.source
        found = len(source.unreadable), len(source.enlarged)
        if found == self._told_of:
            return
        for path, why in list(source.unreadable.items())[self._told_of[0] :]:
            self.reporter.say(f"cannot read the image {path}: {why}; it is passed over")
        self._told_of = found
        self.reporter.extend_summary(unreadable_images=found[0], enlarged_images=found[1])

    def _next(self, began: float, interval_s: float, share: float) -> float:
        """When to do again what began then and ends now, and what the other runs do, too."""
        ended = time.monotonic()
        return ended + max(interval_s, (ended - began) * len(self._going) / share)

    def _change_learning_rate(self) -> None:
        trainer, writer = self.trainer, self._writer
        if trainer.step <= writer.recorded_to:
            return
        request = self._paths.control / jobs.LEARNING_RATE
        try:
            value = float(request.read_text(encoding="utf-8"))
            self.reporter.run.config.replace({"optimizer.learning_rate": value})
        except (OSError, ValueError, ConfigError) as error:
            self.reporter.say(f"not a learning rate: {error}")
        else:
            # On the disk before it takes effect, so that a continued run repeats it there.
            writer.add_event(
                step=trainer.step, name="learning_rate", value=value, wall_time_s=trainer.seconds
            )
            writer.flush()
            trainer.set_learning_rate(value)
            self.reporter.say(f"learning rate {value} from step {trainer.step} on")
        request.unlink(missing_ok=True)

    def close(self, end: State, others: Callable[[], object]) -> None:
        """Complete the files of a run that trains no further, and end it.

        Args:
            others: called now and then, so that other runs can say that they live.
        """

        def alive() -> None:
            self.reporter.report()
            others()

        self._writer.flush()
        if end is not State.DIVERGED:
            self._save()
        if end is State.COMPLETED:
            end = self._measure(alive)
        if end is State.PAUSED and self.reporter.asked_to_stop is State.CANCELLED:
            end = State.CANCELLED  # asked meanwhile
        if end in AT_END:
            self._writer.merge(alive)
        self.reporter.finish(end)

    def _measure(self, alive: Callable[[], object]) -> State:
        """Measure what `inference.json` and `predictions.parquet` tell; returns the state in which
        the run ends. A run that is stopped or killed here goes on from its last step, and measures
        anew."""

        def stop() -> bool:
            alive()
            return self.reporter.asked_to_stop is not None

        config, paths = self.reporter.run.config, self._paths
        try:
            # The other accuracies would take many more passes over images on the disk.
            if config.model.normalization in OVER_BATCH and not config.data.is_streamed:
                measured = accuracies(self.trainer, stop).model_dump_json(indent=2) + "\n"
                write_aside(paths.inference, measured, durable=True)
            if config.trace.predictions:
                found = probabilities(self.trainer, stop)
                predictions.write(paths.predictions, found)
        except PredictionsError as error:  # the run itself is whole
            self.reporter.say(f"no class probabilities are stored: {error}")
        except Stopped:
            return self.reporter.asked_to_stop or State.PAUSED
        return State.COMPLETED

    def _save(self) -> None:
        state = {**self.trainer.state(), "summary": self.reporter.status.summary}
        checkpoint.save(self._paths.checkpoint, state)

    def keep(self) -> None:
        """Write what is recorded, if that can be done: also after an error it is kept."""
        with contextlib.suppress(OSError):
            self._writer.flush()
