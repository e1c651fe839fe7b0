"""Training as a stream of records. Knows no file: what is recorded where is the worker's affair."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch

from bnviz import identities, models, schedules
from bnviz.config import RunConfig, kernel_problem
from bnviz.cuda_graph import Capture, NotCapturedError, Update, capture_cuda, captured
from bnviz.data import DataError, ImageData, Minibatches, load
from bnviz.evaluation import EVALUATION_CHUNK, predict, score
from bnviz.identities import Check
from bnviz.models.layers import Dropout
from bnviz.observations import Observations
from bnviz.probe import PreActivations, observe
from bnviz.records import Diverged, Metrics, Progress, Record
from bnviz.settings import OVER_BATCH
from bnviz.steps import make_optimizer, make_step

PROGRESS_INTERVAL_S = 0.1
"""How long the stream may be silent: who reads it can stop a run within this time."""

LOSSES = 10_000
"""Losses that may wait until records are taken, besides those since the last record."""

LOOK_INTERVAL = 100
"""Steps, at least, between looks at all parameters, each of which takes as long as a record."""

PROBE_SEED = 0
"""Picks the held-out sample. The same for every run, so that runs of any seed are comparable."""


def train(config: RunConfig, data: ImageData | None = None) -> Iterator[Record]:
    """Train as configured, yielding records as they arise; the last one has the last step.

    Args:
        data: the data set, if it is loaded already.

    Raises:
        RuntimeError: `training.device` is "cuda" and there is none.
        DataError: the data cannot be made ready.
    """
    yield from Trainer(config, data).records()


class Trainer:
    """One run: its network, its data, and where it stands (`step` completed updates)."""

    def __init__(self, config: RunConfig, data: ImageData | None = None) -> None:
        self.config = config
        self.device = choose_device(config.training.device)
        self.step = 0
        self.data = (data or load(config.data)).to(self.device)
        check_fit(config, self.data)
        channels, height, width = self.data.train_images.shape[1:]
        self.model = models.build(
            config.model, (channels, height, width), self.data.classes, config.training.seed
        )
        self.model.to(self.device)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.base_rate = config.optimizer.learning_rate
        """The learning rate without its schedule."""
        self.learning_rate = self.base_rate
        """Of the next update."""
        self.note = ""
        """What the user may want to know of how it trains."""
        self.train_step = make_step(self.model, self.optimizer, config.model)
        self._observations = Observations()
        self._constant_rate = schedules.is_constant(config.optimizer)
        self._set_rate()
        self.batches = Minibatches(
            len(self.data.train_images),
            config.training.batch_size,
            config.training.seed,
            self.device,
            shard_size=config.data.shard_size if config.data.shuffling != "thorough" else 0,
            within_shards=config.data.shuffling == "within_shards",
        )
        chosen = np.random.default_rng(PROBE_SEED).permutation(len(self.data.test_images))
        self.probe_images = self.data.test_images[
            torch.from_numpy(chosen[: config.trace.probe_size]).to(self.device)
        ]  # (probe_size, channels, height, width)
        applies = identities.apply_to(config.model)
        self._checker = identities.Checker(self.model) if applies else None
        self.planned_rates: dict[int, float] = {}
        """Step to the learning rate that is set when that many updates are completed."""
        steps = config.training.steps
        self._trace_at = set(dense_at_start(steps, config.trace.records))
        self._evaluate_at = set(dense_at_start(steps, config.training.evaluations))
        self._look_at = spaced(sorted(self._trace_at), LOOK_INTERVAL)
        self._trains_on_what_is_observed = _trains_on_what_is_observed(config)
        # Losses since the last train record, at `_recorded_at`. They stay on the device until
        # records are taken, so that a step never waits for one.
        self._recorded_at = 0
        longest = _longest_gap(self._trace_at | self._evaluate_at | {0, steps})
        self._losses = torch.zeros(longest + LOSSES, device=self.device)
        self._due: list[tuple[int, float, float]] = []
        """Step, learning rate and seconds of the train records that are still to be taken."""
        self._seconds = 0.0  # of training, before `records` was called
        self._began: float | None = None

    def set_learning_rate(self, value: float) -> None:
        """Set what the schedule multiplies; takes effect with the next update."""
        self.base_rate = value
        self._set_rate()

    def _set_rate(self) -> None:
        now = schedules.factor(self.config.optimizer, self.step, self.config.training.steps)
        self.learning_rate = self.base_rate * now
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):  # where the update is captured
                group["lr"].fill_(self.learning_rate)
            else:
                group["lr"] = self.learning_rate

    def state(self) -> dict[str, Any]:
        """All that going on from here needs. The order of the data is a function of the seed and
        the step, so it needs nothing more."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer_state(),
            "recorded_at": self._recorded_at,
            "losses": self._recent_losses(),
            "seconds": self.seconds,
            "base_rate": self.base_rate,
            "dropout": [source.get_state() for source in self._dropout_sources()],
            "device": self.device.type,
        }

    def _optimizer_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state_dict()
        for group in state["param_groups"]:  # as they are where nothing is captured
            group["lr"] = self.learning_rate
            if "capturable" in group:
                group["capturable"] = False
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken; `records` goes on from there."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self._recorded_at = state["recorded_at"]
        self._recent_losses().copy_(state["losses"])
        self._seconds = state["seconds"]
        # The first checkpoints had no schedule and no dropout.
        self.learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.base_rate = state.get("base_rate", self.learning_rate)
        for source, saved in zip(self._dropout_sources(), state.get("dropout", []), strict=False):
            if state["device"] == self.device.type:
                source.set_state(saved)
            else:  # random numbers of another kind of device: these cannot go on, others begin
                source.manual_seed(source.initial_seed() + self.step)

    def _dropout_sources(self) -> list[torch.Generator]:
        return [m.generator(self.device) for m in self.model.modules() if isinstance(m, Dropout)]

    def _recent_losses(self) -> torch.Tensor:
        return self._losses[: self.step - self._recorded_at]  # (updates since the last record,)

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        running = time.perf_counter() - self._began if self._began is not None else 0.0
        return self._seconds + running

    def records(self) -> Iterator[Record]:
        """Train from `step` to the end of the run. See `train`.

        What is due at `step` itself is recorded, also where `restore` has brought us there.
        """
        steps = self.config.training.steps
        self._began = last_sign = time.perf_counter()
        self.model.train()
        update = self._captured_update() if self.device.type == "cuda" else self._update
        while True:
            if not self._constant_rate:
                self._set_rate()
            tracing, evaluating = self.step in self._trace_at, self.step in self._evaluate_at
            ending = self.step == steps
            if tracing or evaluating or ending:
                self._due.append((self.step, self.learning_rate, self.seconds))
            seen: PreActivations | None = None
            if tracing:
                if self._trains_on_what_is_observed and not ending:
                    seen = {}  # filled by the update below
                else:
                    self._observations.add(self.step, self.observe())
            silent = time.perf_counter() - last_sign > PROGRESS_INTERVAL_S
            full = self._observations.full or self.step - self._recorded_at == len(self._losses)
            looking = evaluating or ending or self.step in self._look_at
            if looking or silent or full:
                if (yield from self._take_records()):
                    return
                if looking and not self._parameters_are_finite():
                    yield Diverged(self.step, "the parameters are not finite")
                    return
                if evaluating:
                    yield from self._evaluate()
                    yield from self.check()
                yield Progress(self.step)
                last_sign = time.perf_counter()
            if ending:
                return
            if self.step in self.planned_rates:
                self.set_learning_rate(self.planned_rates[self.step])
            loss = update(self.batches[self.step], seen)
            self._losses[self.step - self._recorded_at] = loss
            if seen is not None:
                self._observations.add(self.step, seen)
            self.step += 1

    def _update(self, batch: torch.Tensor, seen: PreActivations | None) -> torch.Tensor:
        images = self.data.train_images.index_select(0, batch)
        return self.train_step(images, self.data.train_labels.index_select(0, batch), seen)

    def _captured_update(self, capture: Capture = capture_cuda) -> Update:
        """The update as a CUDA graph, where it can be one."""
        try:
            if why := _no_graph(self.config):
                raise NotCapturedError(why)
            return captured(
                self._update,
                self.model,
                self.optimizer,
                self.batches[self.step],
                self._dropout_sources(),
                capture,
            )
        except NotCapturedError as error:
            self.note = f"each update is launched kernel by kernel, not as a CUDA graph: {error}"
            return self._update

    def _take_records(self) -> Generator[Record, None, bool]:
        """Yields the train records and percentiles that are due. True where the loss is not finite
        any more: then that is yielded, too, and nothing of later steps."""
        losses = self._recent_losses().cpu().numpy()  # (updates since the last record,)
        finite = np.isfinite(losses)
        first, last = (
            self._recorded_at,
            self.step if finite.all() else self._recorded_at + int(finite.argmin()),
        )
        due, self._due = self._due, []
        for step, rate, seconds in due:
            if self._recorded_at < step <= last:
                own = losses[self._recorded_at - first : step - first]
                loss = float(own.mean(dtype=np.float64))
                yield Metrics(step, "train", loss, None, rate, seconds)
            self._recorded_at = step
        for record in self._observations.take():
            if record.step <= last:
                yield record
        if last < self.step:
            yield Diverged(last, "the training loss is not finite")
            return True
        if self._recorded_at > first:
            kept = torch.from_numpy(losses[self._recorded_at - first :].copy())
            self._losses[: len(kept)] = kept
        return False

    def _parameters_are_finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.model.parameters())

    def observe(self) -> PreActivations:
        """Pre-activations of every hidden layer for the probe, now. Changes nothing of the run."""
        trace = self.config.trace
        images = self.probe_images
        if trace.probe == "minibatch":
            images = self.data.train_images[self.batches[self.step]]
        return observe(self.model, self.model.nonlinearities(), images, trace.bn_mode)

    def check(self) -> Iterator[Check]:
        """The paper's identities on the next minibatch, now, where they apply to this network.
        Changes nothing of the run."""
        if self._checker is not None:
            batch = self.batches[self.step][: identities.EXAMPLES]
            images, labels = self.data.train_images[batch], self.data.train_labels[batch]
            yield from self._checker.check(images, labels, self.step)

    def _evaluate(self) -> Iterator[Metrics | Progress]:
        logits = []
        for chunk in self.data.test_images.split(EVALUATION_CHUNK):
            logits.append(predict(self.model, chunk))
            yield Progress(self.step, complete=False)  # a large network takes its time
        yield self._metrics("test", *score(torch.cat(logits), self.data.test_labels))

    def _metrics(self, split: str, loss: float, accuracy: float | None) -> Metrics:
        return Metrics(self.step, split, loss, accuracy, self.learning_rate, self.seconds)


def _no_graph(config: RunConfig) -> str | None:
    """Why no update of this configuration can be captured, where that is known."""
    if config.model.normalization == "whitening":
        return "full whitening waits for the GPU in each step"
    if config.optimizer.kind == "adagrad":
        return "torch's AdaGrad counts its steps on the CPU"
    return None


def _trains_on_what_is_observed(config: RunConfig) -> bool:
    """Whether the pass of an update computes what the probe looks at, so that it need not be
    computed again: the minibatch, normalized by its own statistics, with nothing dropped."""
    return (
        config.trace.probe == "minibatch"
        and (config.trace.bn_mode == "batch" or config.model.normalization not in OVER_BATCH)
        and config.model.normalization != "batch_renorm"
        and not config.model.dropout
    )


def check_fit(config: RunConfig, data: ImageData) -> None:
    """Whether a configuration can train on this data, which may be the user's own.

    Raises:
        DataError: it cannot; the message says why.
    """
    examples, batch = len(data.train_images), config.training.batch_size
    if batch > examples:
        raise DataError(
            f"training.batch_size = {batch}: there are {examples:,} training examples; choose at "
            f"most {examples:,}"
        )
    if len(data.test_images) < 2 and config.model.normalization in OVER_BATCH:
        raise DataError(
            "there is one test image; statistics of a batch need two at least, so add some, or "
            "choose model.normalization = none"
        )
    if problem := kernel_problem(config.model, min(data.train_images.shape[2:])):
        raise DataError(problem)


def dense_at_start(steps: int, count: int) -> list[int]:
    """About `count` steps from 0 to `steps`, both included, closest together at the start.

    The i-th is steps * (i / count)^2: the change is fastest at the start (Figure 1), and the
    square puts about a third of the records into the first tenth of the run while the gap at the
    end is only twice the mean. Fewer than `count` come back where neighbours round to one step.
    None for `count` 0, all for `steps` or more.
    """
    if count >= steps:
        return list(range(steps + 1))
    return sorted({round(steps * (i / count) ** 2) for i in range(count + 1)}) if count else []


def spaced(steps: list[int], gap: int) -> set[int]:
    """Those of ascending steps that follow the one before, among these, by at least `gap`."""
    chosen: list[int] = []
    for step in steps:
        if not chosen or step - chosen[-1] >= gap:
            chosen.append(step)
    return set(chosen)


def choose_device(wanted: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises RuntimeError where there is no CUDA device."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "training.device = cuda, but this machine has no CUDA device that torch can use; "
            "choose cpu or auto"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _longest_gap(steps: set[int]) -> int:
    return int(np.diff(sorted(steps)).max())
