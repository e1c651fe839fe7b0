"""Training as a stream of records. Knows no file: what is recorded where is the worker's affair."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from bnviz import identities, models, schedules
from bnviz.config import RunConfig, kernel_problem
from bnviz.data import DataError, ImageData, Minibatches, load
from bnviz.identities import Check
from bnviz.models.layers import Dropout
from bnviz.percentiles import percentiles
from bnviz.probe import observe
from bnviz.schema import GRID
from bnviz.settings import OVER_BATCH, OptimizerConfig

EVALUATION_CHUNK = 250
"""Test examples a forward pass: activations of this many stay in a CPU's cache."""

PROGRESS_INTERVAL_S = 0.1
"""How long the stream may be silent: who reads it can stop a run within this time."""

PROBE_SEED = 0
"""Picks the held-out sample. The same for every run, so that runs of any seed are comparable."""


@dataclass(frozen=True)
class Metrics:
    """Loss and accuracy at a step. `split` is "train" (loss: mean of the minibatches since the
    previous train record; accuracy is not measured) or "test" (the whole test set, BN with running
    statistics)."""

    step: int
    split: str
    loss: float
    accuracy: float | None
    learning_rate: float
    wall_time_s: float


@dataclass(frozen=True)
class Percentiles:
    """Distribution of the pre-activation of every unit of a layer at a step."""

    step: int
    layer: str
    mean: npt.NDArray[np.float64]  # (units,)
    std: npt.NDArray[np.float64]  # (units,)
    grid: npt.NDArray[np.float64]  # (units, len(GRID))


@dataclass(frozen=True)
class Progress:
    """Nothing new but the step: a sign of life, at least every PROGRESS_INTERVAL_S.

    `complete`: all records of this step have come, and the next update follows.
    """

    step: int
    complete: bool = True


@dataclass(frozen=True)
class Diverged:
    """The last record of a run whose loss or parameters stopped being finite numbers.

    `step` counts the updates completed when it happened: the loss computed there, or the
    parameters that the update led to, are not finite.
    """

    step: int
    reason: str


Record = Metrics | Percentiles | Check | Progress | Diverged


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
        self.layers: dict[str, nn.Module] = {
            name: layer.nonlinearity for name, layer in self.model.named_layers().items()
        }
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
        # Losses since the last train record, at `_recorded_at`. They stay on the device until a
        # record is due, so that a step never waits for one.
        self._recorded_at = 0
        longest = _longest_gap(self._trace_at | self._evaluate_at | {0, steps})
        self._losses = torch.zeros(longest, device=self.device)
        self._seconds = 0.0  # of training, before `records` was called
        self._began: float | None = None

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_learning_rate(self, value: float) -> None:
        """Set what the schedule multiplies; takes effect with the next update."""
        self.base_rate = value
        self._set_rate()

    def _set_rate(self) -> None:
        now = schedules.factor(self.config.optimizer, self.step, self.config.training.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_rate * now

    def state(self) -> dict[str, Any]:
        """All that going on from here needs. The order of the data is a function of the seed and
        the step, so it needs nothing more."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "recorded_at": self._recorded_at,
            "losses": self._recent_losses(),
            "seconds": self.seconds,
            "base_rate": self.base_rate,
            "dropout": [source.get_state() for source in self._dropout_sources()],
            "device": self.device.type,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken; `records` goes on from there."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self._recorded_at = state["recorded_at"]
        self._recent_losses().copy_(state["losses"])
        self._seconds = state["seconds"]
        # The first checkpoints had no schedule and no dropout.
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
        while True:
            if not self._constant_rate:
                self._set_rate()
            tracing, evaluating = self.step in self._trace_at, self.step in self._evaluate_at
            recording = tracing or evaluating or self.step == steps
            if recording:
                recent = self._recent_losses()
                if diverged := self._divergence(recent):
                    yield diverged
                    return
                if len(recent):
                    yield self._metrics("train", float(recent.mean()), None)
                self._recorded_at = self.step
                if tracing:
                    yield from self.observe()
                if evaluating:
                    yield from self._evaluate()
                    yield from self.check()
            if recording or time.perf_counter() - last_sign > PROGRESS_INTERVAL_S:
                yield Progress(self.step)
                last_sign = time.perf_counter()
            if self.step == steps:
                return
            if self.step in self.planned_rates:
                self.set_learning_rate(self.planned_rates[self.step])
            batch = self.batches[self.step]
            self._losses[self.step - self._recorded_at] = train_step(
                self.model,
                self.optimizer,
                self.data.train_images[batch],
                self.data.train_labels[batch],
            )
            self.step += 1

    def observe(self) -> Iterator[Percentiles]:
        """Percentiles of every unit of every hidden layer, now. Changes nothing of the run."""
        trace = self.config.trace
        images = self.probe_images
        if trace.probe == "minibatch":
            images = self.data.train_images[self.batches[self.step]]
        for layer, values in observe(self.model, self.layers, images, trace.bn_mode).items():
            with np.errstate(invalid="ignore"):  # an infinite value has no mean: NaN is the answer
                mean = values.mean(axis=1, dtype=np.float64)
                std = values.std(axis=1, dtype=np.float64)
            yield Percentiles(self.step, layer, mean, std, percentiles(values, GRID))

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

    def _divergence(self, recent: torch.Tensor) -> Diverged | None:
        bad = torch.nonzero(~torch.isfinite(recent))
        if len(bad):
            return Diverged(self._recorded_at + int(bad[0]), "the training loss is not finite")
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            return Diverged(self.step, "the parameters are not finite")
        return None


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


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of a configuration. The L2 penalty is on the weights of linear maps alone."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups: list[dict[str, Any]] = (
        [{"params": weights, "weight_decay": config.l2}, {"params": others, "weight_decay": 0.0}]
        if config.l2
        else [{"params": list(model.parameters())}]
    )
    rate = config.learning_rate
    if config.kind == "adagrad":
        return torch.optim.Adagrad(groups, lr=rate, fused=groups[0]["params"][0].is_cpu)
    if config.kind == "adam":
        return torch.optim.Adam(groups, lr=rate, fused=True)
    return torch.optim.SGD(
        groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov, fused=True
    )


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """One update on one minibatch, images (m, channels, height, width), labels (m,). Returns its
    mean loss, ()."""
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean loss and accuracy over images (N, channels, height, width), BN with running
    statistics."""
    return score(torch.cat([predict(model, c) for c in images.split(EVALUATION_CHUNK)]), labels)


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (n, classes) of (n, channels, height, width) images, BN with running statistics."""
    was_training = model.training
    model.eval()
    try:
        logits: torch.Tensor = model(images)
    finally:
        model.train(was_training)
    return logits


def score(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean loss and accuracy of (N, classes) logits against labels (N,)."""
    loss = F.cross_entropy(logits, labels)
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    return float(loss), float(accuracy)


def dense_at_start(steps: int, count: int) -> list[int]:
    """About `count` steps from 0 to `steps`, both included, closest together at the start.

    The i-th is steps * (i / count)^2: the change is fastest at the start (Figure 1), and the
    square puts about a third of the records into the first tenth of the run while the gap at the
    end is only twice the mean. Fewer than `count` come back where neighbours round to one step.
    None for `count` 0.
    """
    return sorted({round(steps * (i / count) ** 2) for i in range(count + 1)}) if count else []


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
