"""Images that are read from the disk while a network trains: too many for the memory (ImageNet)."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bnviz import folders, sources
from bnviz.augmentation import augmented
from bnviz.config import RunConfig
from bnviz.crops import SCALES, crops_of_square
from bnviz.data import ImageData, Minibatches, pixels
from bnviz.images import DataError, as_colours_or_grey, make_torchvision_importable, subset
from bnviz.settings import DataConfig

RESIZE = 256 / 224
"""The shorter side to which a test image is brought, in parts of the crop's (GoogLeNet)."""

TEST_BATCH = 50
"""Test images that are read, and pass the network, at once."""

REPLACED_BY = 100
"""Images that are tried in the place of one that cannot be read."""

AHEAD = 4
"""Batches that each process reads in advance: images of very different sizes take very different
times."""

Transform = Callable[[Image.Image], torch.Tensor]
"""From an image file's pixels to uint8 (…, channels, side, side)."""


class Batch(NamedTuple):
    """What a process has read. `failures` are paths of images that cannot be read, with why."""

    images: torch.Tensor  # (m, …, channels, side, side) uint8
    labels: torch.Tensor  # (m,) int64
    failures: list[tuple[str, str]]
    enlarged: list[str]
    """Paths of images that are smaller than the crop."""


class StreamedImages:
    """The images of FOLDER/train/CLASS/ and FOLDER/val/CLASS/.

    Training images are random crops, one way or mirrored; test images the centre of the image. What
    a minibatch consists of is a function of seed and step alone, however many processes read.

    Args:
        config: of the run.
        device: where the images are to be.

    Raises:
        DataError: there are none, or they do not fit the configuration.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        data = config.data
        problems, train, test = sources.contents(data)
        if problems:
            raise DataError("; ".join(problems))
        make_torchvision_importable()
        numbers = {name: number for number, name in enumerate(train)}
        everything = _files(train, numbers)
        chosen = subset(data, len(everything.paths))
        self._train = _Files(everything.paths[chosen], everything.labels[chosen])
        self._test = _files(test, numbers)
        self._config, self._device = config, device
        self.classes = len(numbers)
        self.train_count, self.test_count = len(self._train.paths), len(self._test.paths)
        self.shape = (3 if data.input == "colour" else 1, data.image_size, data.image_size)
        self.unreadable: dict[str, str] = {}
        """Images that could not be read so far, with why."""
        self.enlarged: set[str] = set()
        """Images so far that are smaller than the crop."""
        self._batches: Iterator[Batch] = iter(())
        self._next = -1  # the step of the next of these
        self._now: tuple[int, tuple[torch.Tensor, torch.Tensor]] | None = None

    def examples(self, step: int, order: Minibatches) -> tuple[torch.Tensor, torch.Tensor]:
        """The minibatch of the update after `step` completed ones: images (m, channels, side,
        side), pixels in [0, 1], and labels (m,).

        Args:
            order: which training examples each step sees.
        """
        if self._now is None or self._now[0] != step:
            if self._next != step:
                self._batches = self._begin(step, order)
            self._next = step + 1
            images, labels = self._received(next(self._batches))
            data = self._config.data
            if data.distortion:  # here, and not where images are read, as a GPU does it faster
                data = data.model_copy(update={"crop_area": 1.0, "flip": False})
                images = augmented(images, data, self._config.training.seed, step)
            self._now = step, (images, labels)
        return self._now[1]

    def _begin(self, step: int, order: Minibatches) -> Iterator[Batch]:
        data, training = self._config.data, self._config.training
        batches = _Training(self._train, order, data, training.seed)
        return self._loader(batches, range(step, training.steps + 1))

    def test_chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All test images that can be read, one crop each, and their labels."""
        yield from self._chunks(np.arange(self.test_count), centre_crop(self._config.data))

    def probe(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        """These test images, (n, channels, side, side)."""
        chunks = self._chunks(numbers, centre_crop(self._config.data))
        return torch.cat([images for images, _ in chunks])

    def test_crops(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of each test image its crops (Szegedy et al. 2014), (1, crops, channels, side, side), and
        its label (1,)."""
        yield from self._chunks(np.arange(self.test_count), many_crops(self._config.data), size=1)

    def _chunks(
        self, numbers: npt.NDArray[np.int64], transform: Transform, size: int = TEST_BATCH
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        parts = np.array_split(numbers, -(-len(numbers) // size))
        data = self._config.data
        for batch in self._loader(_Testing(self._test, parts, data, transform), range(len(parts))):
            yield self._received(batch)

    def _received(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if batch.failures and self._config.data.unreadable == "refuse":
            path, why = batch.failures[0]
            raise DataError(
                f"cannot read the image {path}: {why}; replace or remove it, or choose "
                "data.unreadable = skip"
            )
        self.unreadable.update(batch.failures)
        self.enlarged.update(batch.enlarged)
        if batch.failures and not len(batch.labels):
            path, why = batch.failures[0]
            raise DataError(
                f"none of {len(batch.failures)} images can be read, such as {path}: {why}; bring "
                "others"
            )
        images = batch.images.to(self._device, non_blocking=True)
        labels = batch.labels.to(self._device, non_blocking=True)
        return pixels(images, self._config.data.input), labels

    def _loader(self, batches: Dataset[Batch], numbers: Sequence[int]) -> Iterator[Batch]:
        processes = self._config.data.loaders or len(os.sched_getaffinity(0))
        with warnings.catch_warnings(action="ignore"):  # that there are few CPU cores
            loader = DataLoader(
                batches,
                batch_size=None,  # an item is a batch
                sampler=numbers,
                num_workers=min(processes, len(numbers)),
                prefetch_factor=AHEAD,
                pin_memory=self._device.type == "cuda",
                worker_init_fn=_own_signals,
            )
            return iter(loader)


def _own_signals(_: int) -> None:
    """A process that reads images ends as usual, and not as the run that it belongs to, whose
    handlers it has."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Files(NamedTuple):
    """Image files. Arrays, as a list of millions of texts would be copied page by page into each
    process that reads."""

    paths: npt.NDArray[np.bytes_]  # (n,)
    labels: npt.NDArray[np.int64]  # (n,), numbers of their classes

    def path(self, number: int) -> str:
        return os.fsdecode(bytes(self.paths[number]))


def _files(classes: dict[str, list[str]], numbers: dict[str, int]) -> _Files:
    """Those of some classes, whose numbers are given."""
    return _Files(
        np.array([os.fsencode(path) for own in classes.values() for path in own]),
        np.repeat([numbers[name] for name in classes], [len(own) for own in classes.values()]),
    )


class _Reader(Dataset[Batch]):
    """Reads batches of images.

    Args:
        files: where they are.
        data: how they are read.
    """

    def __init__(self, files: _Files, data: DataConfig) -> None:
        self._files, self._data = files, data

    def _read(self, numbers: Sequence[int], transform: Transform, replace: bool) -> Batch:
        """These images.

        Args:
            replace: an image that cannot be read is replaced by the next one that can, so that the
                batch keeps its size.
        """
        images, labels = [], []
        failures: dict[str, str] = {}
        enlarged: list[str] = []
        for wanted in numbers:
            for number in range(wanted, wanted + (REPLACED_BY if replace else 1)):
                number %= len(self._files.paths)
                path = self._files.path(number)
                name = folders.shown(path)
                try:
                    image = self._open(path)
                    if min(image.size) < self._data.image_size:
                        enlarged.append(name)
                    images.append(transform(image))
                except Exception as error:  # a broken file can make a decoder raise anything
                    failures[name] = str(error)
                    if self._data.unreadable == "refuse":
                        break
                else:
                    labels.append(int(self._files.labels[number]))
                    break
        stacked = torch.stack(images) if images else torch.empty((0, 1, 1, 1), dtype=torch.uint8)
        return Batch(
            stacked, torch.tensor(labels, dtype=torch.int64), list(failures.items()), enlarged
        )

    def _open(self, path: str) -> Image.Image:
        with Image.open(path) as file:
            return as_colours_or_grey(file, colour=self._data.input == "colour")


class _Training(_Reader):
    def __init__(self, files: _Files, order: Minibatches, data: DataConfig, seed: int) -> None:
        super().__init__(files, data)
        self._order, self._seed = order, seed

    def __getitem__(self, step: int) -> Batch:
        [number] = np.random.SeedSequence([self._seed, step, 1]).generate_state(1)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own numbers
            torch.manual_seed(int(number))
            return self._read(self._order[step].tolist(), random_crop(self._data), replace=True)


class _Testing(_Reader):
    def __init__(
        self,
        files: _Files,
        parts: list[npt.NDArray[np.int64]],
        data: DataConfig,
        transform: Transform,
    ) -> None:
        super().__init__(files, data)
        self._parts, self._transform = parts, transform

    def __getitem__(self, number: int) -> Batch:
        return self._read(self._parts[number].tolist(), self._transform, replace=False)


def random_crop(data: DataConfig) -> Transform:
    """GoogLeNet's training crops: of a share of the area, and an aspect ratio of 3/4 to 4/3."""
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(
        data.image_size, scale=(data.crop_area, 1.0), ratio=(3 / 4, 4 / 3), antialias=True
    )
    mirror = [v2.RandomHorizontalFlip()] if data.flip else []
    return v2.Compose([crop, *mirror, v2.PILToTensor()])


def centre_crop(data: DataConfig) -> Transform:
    """The single crop by which the paper evaluates."""
    from torchvision.transforms import v2

    side = data.image_size
    return v2.Compose(
        [v2.Resize(round(side * RESIZE), antialias=True), v2.CenterCrop(side), v2.PILToTensor()]
    )


def many_crops(data: DataConfig) -> Transform:
    """GoogLeNet's 144 crops (Szegedy et al. 2014): of four sizes three squares, of each the four
    corners, the centre and the whole, and their mirrors: (crops, channels, side, side)."""
    from torchvision.transforms.v2 import functional

    side = data.image_size

    def transform(image: Image.Image) -> torch.Tensor:
        found: list[torch.Tensor] = []
        for scale in SCALES:
            shorter = round(side * scale)
            resized = functional.pil_to_tensor(functional.resize(image, [shorter], antialias=True))
            far = max(resized.shape[1:]) - shorter
            for offset in (0, far // 2, far):
                upright = resized.shape[1] > resized.shape[2]
                top, left = (offset, 0) if upright else (0, offset)
                square = resized[:, top : top + shorter, left : left + shorter]
                found += crops_of_square(square[None].float(), side, data.flip)
        return torch.cat(found).round().to(torch.uint8)

    return transform


Source = ImageData | StreamedImages
"""What a run trains on."""
