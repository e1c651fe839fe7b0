"""One run in training: its network, its data, and where it stands."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bnviz import identities, models, schedules
from bnviz.agenda import Agenda
from bnviz.augmentation import augmented
from bnviz.config import RunConfig
from bnviz.data import DataError, ImageData, Minibatches, check_fit, load
from bnviz.models.layers import Dropout
from bnviz.probe import PreActivations
from bnviz.records import Diverged, Metrics, Percentiles, Record
from bnviz.steps import make_optimizer, make_step
from bnviz.stream import Source, StreamedImages

LOSSES = 10_000
"""Losses that may wait until records are taken, besides those since the last record."""

PROBE_SEED = 0
"""Picks the held-out sample. The same for every run, so that runs of any seed are comparable."""


class Trainer:
    """One run: its network, its data, and where it stands (`step` completed updates).

    Args:
        data: the data set, if it is loaded already.

    Raises:
        RuntimeError: `training.device` is "cuda" and there is none.
        DataError: the data cannot be made ready.
    """

    def __init__(self, config: RunConfig, data: Source | None = None) -> None:
        self.config = config
        self.device = choose_device(config.training.device)
        self.step = 0
        self.source = source = self._source(data)
        """What it trains on."""
        check_fit(config, source.train_count, source.test_count, min(source.shape[1:]))
        self.model = models.build(config.model, source.shape, source.classes, config.training.seed)
        self.model.to(self.device)
        if config.model.is_inception:  # its many convolutions are faster so, on CPU and GPU
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.base_rate = config.optimizer.learning_rate
        """The learning rate without its schedule."""
        self.learning_rate = self.base_rate
        """Of the next update."""
        self.note = ""
        """What the user may want to know of how it trains."""
        nonlinearities = self.model.nonlinearities()
        self.observed = {name: nonlinearities[name] for name in config.traced_layers}
        """The nonlinearities of the recorded layers, by layer."""
        self.train_step = make_step(self.model, self.optimizer, config)
        self.constant_rate = schedules.is_constant(config.optimizer)
        self.set_rate()
        self.batches = Minibatches(
            source.train_count,
            config.training.batch_size,
            config.training.seed,
            torch.device("cpu") if config.data.is_streamed else self.device,
            shard_size=config.data.shard_size if config.data.shuffling != "thorough" else 0,
            within_shards=config.data.shuffling == "within_shards",
        )
        self.planned_rates: dict[int, float] = {}
        """Step to the learning rate that is set when that many updates are completed."""
        self.agenda = Agenda(config)
        # Losses since the last train record, at `recorded_at`. They stay on the device until
        # records are taken, so that a step never waits for one.
        self.recorded_at = 0
        self.losses = torch.zeros(self.agenda.longest_gap + LOSSES, device=self.device)
        self._due: list[tuple[int, float, float]] = []
        """Step, learning rate and seconds of the train records that are still to be taken."""
        self._seconds = 0.0  # of training, before `begin`
        self._began: float | None = None

    def _source(self, given: Source | None) -> Source:
        if given is None and self.config.data.is_streamed:
            return StreamedImages(self.config, self.device)
        source = given or load(self.config.data)
        return source.to(self.device) if isinstance(source, ImageData) else source

    @cached_property
    def probe_images(self) -> torch.Tensor:
        """The fixed held-out sample, (probe_size, channels, height, width)."""
        order = np.random.default_rng(PROBE_SEED).permutation(self.source.test_count)
        return self.source.probe(order[: self.config.trace.probe_size])

    @property
    def data(self) -> ImageData:
        """The images, where they are in memory.

        Raises:
            DataError: they are not.
        """
        if isinstance(self.source, ImageData):
            return self.source
        raise DataError(
            f"the images of {self.config.data.dataset} are read while training and not held in "
            "memory, so this cannot be done with them"
        )

    def set_learning_rate(self, value: float) -> None:
        """Set what the schedule multiplies; takes effect with the next update."""
        self.base_rate = value
        self.set_rate()

    def set_rate(self) -> None:
        """Set the rate of the next update, as the schedule has it."""
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
        # Copies, as a view would be saved with all of what it is a view of.
        return {
            "step": self.step,
            "model": {name: t.clone() for name, t in self.model.state_dict().items()},
            "optimizer": self._optimizer_state(),
            "recorded_at": self.recorded_at,
            "losses": self._recent_losses().clone(),
            "seconds": self.seconds,
            "base_rate": self.base_rate,
            "dropout": [source.get_state() for source in self.dropout_sources()],
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
        """Stand where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.recorded_at = state["recorded_at"]
        self._recent_losses().copy_(state["losses"])
        self._seconds = state["seconds"]
        # The first checkpoints had no schedule and no dropout.
        self.learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.base_rate = state.get("base_rate", self.learning_rate)
        for source, saved in zip(self.dropout_sources(), state.get("dropout", []), strict=False):
            if state["device"] == self.device.type:
                source.set_state(saved)
            else:  # random numbers of another kind of device: these cannot go on, others begin
                source.manual_seed(source.initial_seed() + self.step)

    def dropout_sources(self) -> list[torch.Generator]:
        return [m.generator(self.device) for m in self.model.modules() if isinstance(m, Dropout)]

    def _recent_losses(self) -> torch.Tensor:
        return self.losses[: self.step - self.recorded_at]  # (updates since the last record,)

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        running = time.perf_counter() - self._began if self._began is not None else 0.0
        return self._seconds + running

    def begin(self) -> None:
        """From now on it trains, if it did not before."""
        if self._began is None:
            self._began = time.perf_counter()
        self.model.train()

    def note_due(self) -> None:
        """A train record is due at this step; it is made when records are taken."""
        self._due.append((self.step, self.learning_rate, self.seconds))

    def examples(
        self, batch: torch.Tensor, step: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """These examples, (m,), as the update after `step` completed ones trains on them, by
        default the next one: images (m, channels, height, width), and labels (m,)."""
        step = self.step if step is None else step
        if isinstance(self.source, StreamedImages):
            return self.source.examples(step, self.batches)
        images = self.data.train_images.index_select(0, batch)
        config = self.config
        if config.data.is_augmented:
            images = augmented(images, config.data, config.training.seed, step)
        return images, self.data.train_labels.index_select(0, batch)

    def update(self, batch: torch.Tensor, seen: PreActivations | None = None) -> torch.Tensor:
        """Train on these examples, (m,). See `bnviz.steps.Step`."""
        return self.train_step(*self.examples(batch), seen)

    def take(self, percentiles: Iterable[Percentiles]) -> Generator[Record, None, bool]:
        """Yields the train records that are due, and these percentiles. True where the loss is not
        finite any more: then that is yielded, too, and nothing of later steps."""
        losses = self._recent_losses().cpu().numpy()  # (updates since the last record,)
        finite = np.isfinite(losses)
        first, last = (
            self.recorded_at,
            self.step if finite.all() else self.recorded_at + int(finite.argmin()),
        )
        due, self._due = self._due, []
        for step, rate, seconds in due:
            if self.recorded_at < step <= last:
                own = losses[self.recorded_at - first : step - first]
                loss = float(own[0] if len(own) == 1 else own.mean(dtype=np.float64))
                yield Metrics(step, "train", loss, None, rate, seconds)
            self.recorded_at = step
        for record in percentiles:
            if record.step <= last:
                yield record
        if last < self.step:
            yield Diverged(last, "the training loss is not finite")
            return True
        if self.recorded_at > first:
            kept = torch.from_numpy(losses[self.recorded_at - first :].copy())
            self.losses[: len(kept)] = kept
        return False

    def parameters_are_finite(self) -> bool:
        """Whether all are finite numbers; waits for the device once."""
        largest = torch._foreach_norm([p.detach() for p in self.model.parameters()], torch.inf)
        return bool(torch.stack(largest).isfinite().all())

    def to_check(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of the next minibatch, on which the paper's identities are checked."""
        images, labels = self.examples(self.batches[self.step])
        return images[: identities.EXAMPLES], labels[: identities.EXAMPLES]

    def measured(self, split: str, loss: float, accuracy: float | None) -> Metrics:
        """A record of what was measured now."""
        return Metrics(self.step, split, loss, accuracy, self.learning_rate, self.seconds)


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
