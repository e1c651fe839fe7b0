"""Training as a stream of records. Knows no file: what is recorded where is the worker's affair."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from bnviz import identities, together
from bnviz.config import RunConfig
from bnviz.cuda_graph import Capture, NotCapturedError, Update, capture_cuda, captured
from bnviz.data import ImageData
from bnviz.evaluation import predict, score
from bnviz.identities import Check
from bnviz.observations import Observations
from bnviz.probe import PreActivations, observe
from bnviz.records import Diverged, Percentiles, Progress, Record
from bnviz.settings import OVER_BATCH
from bnviz.stack import Stack
from bnviz.trainer import Trainer

PROGRESS_INTERVAL_S = 0.1
"""How long the stream may be silent: who reads it can stop a run within this time."""


def train(config: RunConfig, data: ImageData | None = None) -> Iterator[Record]:
    """Train as configured, yielding records as they arise; the last one has the last step.

    Args and raises: as `bnviz.trainer.Trainer`.
    """
    yield from proceed(Trainer(config, data))


def proceed(trainer: Trainer) -> Iterator[Record]:
    """Train from where it stands to the end of the run, yielding records.

    What is due at its step itself is recorded, also where `Trainer.restore` has brought it there.
    """
    for _, record in Training([trainer]).records():
        yield record


class Training:
    """The training of some runs as one program, step by step.

    Args:
        trainers: one, or several of configurations with the same `bnviz.together.key`, on the same
            data. Those that stand further wait for the others.
        capture: what makes a graph of an update; None for `capture_cuda` on a GPU, and none on a
            CPU.
    """

    def __init__(self, trainers: Sequence[Trainer], capture: Capture | None = None) -> None:
        if len(trainers) > 1:
            keys = {together.key(trainer.config) for trainer in trainers}
            assert len(keys) == 1
            assert None not in keys
        self._trainers = dict(enumerate(trainers))
        """By number, those that have not ended."""
        first = trainers[0]
        self._stacked = len(trainers) > 1
        self._capture = capture or (capture_cuda if first.device.type == "cuda" else None)
        self._config, self._source, self._agenda = first.config, first.source, first.agenda
        self._trains_on_what_is_observed = _trains_on_what_is_observed(first.config)

    def leave(self, number: int) -> None:
        """Train this run no further. Nothing more of it comes; the others go on."""
        self._trainers.pop(number, None)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Train to the end, yielding records with the number of the run that they belong to."""
        while steps := sorted({trainer.step for trainer in self._trainers.values()}):
            yield from self._train(*steps[:2])
            if len(steps) == 1:
                return

    def _train(self, step: int, until: int = -1) -> Iterator[tuple[int, Record]]:
        """Train those that stand at a step: to their end, or to the step where others stand."""
        active = {n: trainer for n, trainer in self._trainers.items() if trainer.step == step}
        agenda = self._agenda
        for trainer in active.values():
            trainer.begin()
        observations = Observations(self._config.traced_layers)
        program = self._program(active)
        constant_rates = all(trainer.constant_rate for trainer in active.values())
        last_sign = time.perf_counter()
        while True:
            if not constant_rates:
                for trainer in active.values():
                    trainer.set_rate()
            ending = step == agenda.steps
            seen: PreActivations | None = None
            if step in agenda.due:
                for trainer in active.values():
                    trainer.note_due()
                if step in agenda.traced and step != until:
                    if self._trains_on_what_is_observed and not ending:
                        seen = {}  # filled by the update below
                    else:
                        observations.add(step, program.observe())
            silent = time.perf_counter() - last_sign > PROGRESS_INTERVAL_S
            if step in agenda.looks or silent or observations.full or step == until or program.full:
                shares = _shares(observations.take(), len(active))
                for (number, trainer), share in zip(active.items(), shares, strict=True):
                    yield from self._taken(number, trainer, share)
                if step == until:
                    return
                if step in agenda.evaluated and self._still(active):
                    yield from self._evaluated(active, program)
                yield from self._signs(active)
                if ending:
                    return
                if len(remaining := self._still(active)) < len(active):
                    if not remaining:
                        return
                    del program  # before there is another: a stack takes memory
                    active = remaining
                    program = self._program(active)
                last_sign = time.perf_counter()
            for trainer in active.values():
                if step in trainer.planned_rates:
                    trainer.set_learning_rate(trainer.planned_rates[step])
            program.update(seen)
            if seen is not None:
                observations.add(step, seen)
            step += 1

    def _program(self, active: dict[int, Trainer]) -> _Program:
        return _Program(list(active.values()), self._stacked, self._capture)

    def _still(self, active: dict[int, Trainer]) -> dict[int, Trainer]:
        """Those of them that have not left."""
        return {number: trainer for number, trainer in active.items() if number in self._trainers}

    def _signs(
        self, active: dict[int, Trainer], complete: bool = True
    ) -> Iterator[tuple[int, Progress]]:
        """Of all runs, also of those that wait for others."""
        for number, trainer in list(self._trainers.items()):
            if number in self._trainers:
                yield number, Progress(trainer.step, complete and number in active)

    def _taken(
        self, number: int, trainer: Trainer, percentiles: Iterable[Percentiles]
    ) -> Iterator[tuple[int, Record]]:
        """The records of a run since the last ones. It ends where its numbers are not finite."""
        for record in trainer.take(percentiles):
            if number not in self._trainers:
                return
            yield number, record
            if isinstance(record, Diverged):
                self.leave(number)
        looking = trainer.step in self._agenda.looks
        if looking and number in self._trainers and not trainer.parameters_are_finite():
            yield number, Diverged(trainer.step, "the parameters are not finite")
            self.leave(number)

    def _evaluated(
        self, active: dict[int, Trainer], program: _Program
    ) -> Iterator[tuple[int, Record]]:
        """Loss, accuracy and the paper's identities of each run."""
        chunks, labels = [], []
        last_sign = time.perf_counter()
        for images, own_labels in self._source.test_chunks():
            chunks.append(program.predict(images))
            labels.append(own_labels)
            if time.perf_counter() - last_sign > PROGRESS_INTERVAL_S:
                yield from self._signs(active, complete=False)
                if not self._still(active):
                    return
                last_sign = time.perf_counter()
        logits = torch.cat(chunks, 1)  # (R, images, classes)
        for (number, trainer), own in zip(active.items(), logits, strict=True):
            if number in self._trainers:
                yield number, trainer.measured("test", *score(own, torch.cat(labels)))
        if identities.apply_to(self._config.model):
            for number, checks in zip(active, program.check(), strict=True):
                for check in checks:
                    if number in self._trainers:
                        yield number, check


class _Program:
    """What is computed for some runs at the same step.

    Args:
        stacked: at once, also where one is left of them; else the only run by itself.
    """

    def __init__(self, trainers: Sequence[Trainer], stacked: bool, capture: Capture | None) -> None:
        self._trainers = trainers
        self._first = first = trainers[0]
        self._orders = [trainer.batches for trainer in trainers]
        if len({order.seed for order in self._orders}) == 1:
            self._orders = self._orders[:1]
        self._stack: Stack | None = None
        self._update: Update = first.update
        self._losses = first.losses  # (steps,)
        if stacked:
            self._stack = Stack([t.model for t in trainers], [t.optimizer for t in trainers])
            self._update = _stacked(self._stack, first.data)
            self._losses = torch.stack([trainer.losses for trainer in trainers], 1)  # (steps, R)
            for trainer, losses in zip(trainers, self._losses.unbind(1), strict=True):
                trainer.losses = losses
        if capture is not None:
            self._update = self._captured(capture)

    @property
    def full(self) -> bool:
        """Whether no more losses can wait."""
        return self._first.step - self._first.recorded_at == len(self._losses)

    def update(self, seen: PreActivations | None) -> None:
        """Each run completes an update; `seen` as in `bnviz.steps.Step`."""
        step = self._first.step
        losses = self._update(self._batch(step), seen)
        self._losses[step - self._first.recorded_at] = losses
        for trainer in self._trainers:
            trainer.step += 1

    def observe(self) -> PreActivations:
        """Of the probe of each run, (N, R · units, …)."""
        first, trace = self._first, self._first.config.trace
        batch = self._batch(first.step) if trace.probe == "minibatch" else None
        if self._stack:
            images = first.probe_images if batch is None else first.data.train_images[batch]
            return self._stack.observe(images, trace.bn_mode)
        images = first.probe_images if batch is None else first.examples(batch)[0]
        return observe(first.model, first.observed, images, trace.bn_mode)

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (R, n, classes) of (n, channels, height, width) images."""
        return (
            self._stack.predict(images) if self._stack else predict(self._first.model, images)[None]
        )

    def check(self) -> list[list[Check]]:
        """The paper's identities in each run. Changes nothing of the runs."""
        models = [trainer.model for trainer in self._trainers]
        examples = [trainer.to_check() for trainer in self._trainers]
        return identities.check(models, examples, self._first.step)

    def _batch(self, step: int) -> torch.Tensor:
        # (m,) where all have the same, else (R, m)
        batches = [order[step] for order in self._orders]
        return batches[0] if len(batches) == 1 else torch.stack(batches)

    def _captured(self, capture: Capture) -> Update:
        """The update as a graph of the device, where it can be one."""
        try:
            if why := _no_graph(self._first.config):
                raise NotCapturedError(why)
            return captured(
                self._update,
                [trainer.model for trainer in self._trainers],
                [trainer.optimizer for trainer in self._trainers],
                self._batch(self._first.step),
                [source for t in self._trainers for source in t.dropout_sources()],
                capture,
            )
        except NotCapturedError as error:
            for trainer in self._trainers:
                trainer.note = (
                    f"each update is launched kernel by kernel, not as a CUDA graph: {error}"
                )
            return self._update


def _stacked(stack: Stack, data: ImageData) -> Update:
    """The update of all networks of a stack."""

    def update(batch: torch.Tensor, seen: PreActivations | None) -> torch.Tensor:
        examples = batch.flatten()
        images = data.train_images.index_select(0, examples).unflatten(0, batch.shape)
        labels = data.train_labels.index_select(0, examples).view(batch.shape)
        return stack.update(images, labels, seen)

    return update


def _shares(records: Iterable[Percentiles], runs: int) -> list[list[Percentiles]]:
    """What each of some runs has of records of all of their units."""
    if runs == 1:
        return [list(records)]
    shares: list[list[Percentiles]] = [[] for _ in range(runs)]
    for record in records:
        units = len(record.mean) // runs
        for i, share in enumerate(shares):
            own = slice(i * units, (i + 1) * units)
            share.append(
                Percentiles(
                    record.step, record.layer, record.mean[own], record.std[own], record.grid[own]
                )
            )
    return shares


def _no_graph(config: RunConfig) -> str | None:
    """Why no update of this configuration can be captured, where that is known."""
    if config.model.normalization == "whitening":
        return "full whitening waits for the GPU in each step"
    if config.optimizer.kind == "adagrad":
        return "torch's AdaGrad counts its steps on the CPU"
    if config.data.is_streamed:
        return "its images come from the disk"
    if config.data.is_augmented:
        return "random numbers of crops and distortions are drawn on the CPU"
    return None


def _trains_on_what_is_observed(config: RunConfig) -> bool:
    """Whether the pass of an update computes what the probe looks at, so that it need not be
    computed again: the minibatch, normalized by its own statistics, with nothing dropped."""
    return (
        config.trace.probe == "minibatch"
        and (config.trace.bn_mode == "batch" or config.model.normalization not in OVER_BATCH)
        and config.model.normalization != "batch_renorm"
        and config.training.precision == "float32"
        and not config.model.dropout
    )
