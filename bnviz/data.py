"""Data sets as tensors in memory, and the order of their minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from bnviz.config import RunConfig, size_problem
from bnviz.evaluation import EVALUATION_CHUNK
from bnviz.images import DataError as DataError  # part of what this module offers
from bnviz.images import read
from bnviz.settings import OVER_BATCH, DataConfig

INK = 127
"""A pixel is "on" in binary input when its grey level is above this (half of 255). The paper says
only that its images are binary."""


@dataclass(frozen=True)
class ImageData:
    """Images with pixels in [0, 1], and their classes from 0. Yours may be trained on, too:
    `bnviz.run_here(config, train_on=ImageData(…))`.

    Raises:
        DataError: shapes that do not fit, fewer than two classes, or pixels that are not numbers.
    """

    train_images: torch.Tensor  # (n, channels, height, width) float32
    train_labels: torch.Tensor  # (n,) int64
    test_images: torch.Tensor  # (m, channels, height, width) float32
    test_labels: torch.Tensor  # (m,) int64
    unreadable: dict[str, str] = field(default_factory=dict)
    """Image files that were passed over, with why."""
    enlarged: ClassVar[frozenset[str]] = frozenset()
    """None of them: an image of any size is brought to one."""

    def __post_init__(self) -> None:
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.dim() != 4 or images.shape[0] != len(labels) or not len(labels):
                raise DataError(
                    f"the {split} images are of shape {tuple(images.shape)} with {len(labels)} "
                    "labels; they must be (n, channels, height, width) with n labels"
                )
            # Not by isfinite of all pixels, which would take twice their memory.
            if not all(bool(torch.isfinite(end)) for end in images.aminmax()):
                raise DataError(
                    f"the {split} images have pixels that are not numbers (NaN or infinite); "
                    "replace them, for example by 0"
                )
            if int(labels.min()) < 0:
                raise DataError(f"the {split} labels must be classes from 0 on")
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DataError(
                f"the training images are of shape {tuple(self.train_images.shape[1:])} and the "
                f"test images {tuple(self.test_images.shape[1:])}; bring them to the same"
            )
        if len(self.train_labels.unique()) < 2:
            raise DataError("the training images are all of one class; there is nothing to learn")
        if int(self.test_labels.max()) >= self.classes:
            raise DataError(
                "the test images have a class that the training images have not; add some, or use "
                "more of them (data.examples)"
            )

    @property
    def classes(self) -> int:
        return int(self.train_labels.max()) + 1

    @property
    def train_count(self) -> int:
        return len(self.train_images)

    @property
    def test_count(self) -> int:
        return len(self.test_images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def test_chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All test images with their labels, as many at once as pass a network fast."""
        images = self.test_images.split(EVALUATION_CHUNK)
        yield from zip(images, self.test_labels.split(EVALUATION_CHUNK), strict=True)

    def probe(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        """These test images, (n, channels, height, width)."""
        return self.test_images[torch.from_numpy(numbers).to(self.test_images.device)]

    def to(self, device: torch.device) -> ImageData:
        if self.train_images.device == device:
            return self
        return ImageData(
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
            self.unreadable,
        )


def load(config: DataConfig, cache: Path | None = None) -> ImageData:
    """The data set of a configuration.

    Args:
        cache: where expanded files are kept; by default `bnviz.sources.default_cache()`.

    Raises:
        DataError: it cannot be made ready.
    """
    unreadable: dict[str, str] = {}
    train, test = (
        (pixels(levels, config.input), labels) for levels, labels in read(config, cache, unreadable)
    )
    return ImageData(*train, *test, unreadable)


def load_mnist(input: Literal["binary", "grey"] = "binary", cache: Path | None = None) -> ImageData:
    """All of MNIST as tensors, binary (a pixel is 0 or 1, as the paper's) or in grey levels / 255.

    Raises:
        DataError: the cache cannot be written, or an embedded file is damaged.
    """
    return load(DataConfig(input=input), cache)


def pixels(levels: torch.Tensor, input: str) -> torch.Tensor:
    """Pixels in [0, 1] of uint8 levels, the same shape, float32."""
    return (levels > INK).float() if input == "binary" else levels.float().div_(255)


class Minibatches:
    """Which examples each step trains on: every example once an epoch, in a fresh order.

    The order is a function of (seed, step) alone. So runs that differ only in their network see
    the same batches, and a run can be continued at any step. A batch that reaches the end of an
    epoch is completed from the next one, so all batches have the same size.

    Args:
        shard_size: examples of a shard; 0: a fresh order of all examples. With shards, only these
            come in a fresh order, as data on many disks are read, and
        within_shards: so do the examples within each.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        *,
        shard_size: int = 0,
        within_shards: bool = False,
    ) -> None:
        self.examples = examples
        self.shard_size = shard_size
        self.within_shards = within_shards
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)  # (examples,)

    def __getitem__(self, step: int) -> torch.Tensor:
        """Indices of the batch of the update that follows `step` completed ones: (batch_size,)."""
        epoch, offset = divmod(step * self.batch_size, self.examples)
        end = offset + self.batch_size
        if end <= self.examples:
            return self._epoch_order(epoch)[offset:end]
        head = self._epoch_order(epoch)[offset:]
        return torch.cat([head, self._epoch_order(epoch + 1)[: end - self.examples]])

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            order = torch.from_numpy(self._draw(np.random.default_rng([self.seed, epoch])))
            self._epoch, self._order = epoch, order.to(self.device)
        return self._order

    def _draw(self, random: np.random.Generator) -> npt.NDArray[np.int64]:
        if not self.shard_size:
            return random.permutation(self.examples)
        firsts = np.arange(0, self.examples, self.shard_size)
        shards = [
            np.arange(first, min(first + self.shard_size, self.examples))
            for first in random.permutation(firsts)
        ]
        if self.within_shards:
            shards = [random.permutation(shard) for shard in shards]
        return np.concatenate(shards)


def check_fit(config: RunConfig, train: int, test: int, side: int) -> None:
    """Whether a configuration can train on data which may be the user's own.

    Args:
        train, test: how many images there are.
        side: the smaller of their height and width.

    Raises:
        DataError: it cannot; the message says why.
    """
    batch = config.training.batch_size
    if batch > train:
        raise DataError(
            f"training.batch_size = {batch}: there are {train:,} training examples; choose at "
            f"most {train:,}"
        )
    if test < 2 and config.model.normalization in OVER_BATCH:
        raise DataError(
            "there is one test image; statistics of a batch need two at least, so add some, or "
            "choose model.normalization = none"
        )
    if problem := size_problem(config.model, side):
        raise DataError(problem)
