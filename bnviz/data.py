"""MNIST, embedded in the project, as tensors in memory; and the order of its minibatches.

The four original files (60,000 + 10,000 digits, LeCun & Cortes, CC BY-SA 3.0) lie gzipped in
`assets/mnist`. They are expanded once into a cache and read by `torchvision.datasets.MNIST`.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bnviz.settings import DataConfig

ASSETS = Path(__file__).resolve().parent / "assets" / "mnist"

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""Of the expanded files."""

INK = 127
"""A pixel is "on" in binary input when its grey level is above this (half of 255). The paper says
only that its images are binary."""


SUBSET_SEED = 0
"""Picks the training examples of a subset: the same for every run, and more of them add to it."""


class DataError(RuntimeError):
    """The data cannot be made ready; the message says what to do."""


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
            if not bool(torch.isfinite(images).all()):
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
            raise DataError("the test images have a class that the training images have not")

    @property
    def classes(self) -> int:
        return int(self.train_labels.max()) + 1

    def to(self, device: torch.device) -> ImageData:
        if self.train_images.device == device:
            return self
        return ImageData(
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
        )


def load(config: DataConfig) -> ImageData:
    """The data set of a configuration.

    Raises:
        DataError: it cannot be made ready.
    """
    data = load_mnist(config.input)
    if not config.examples:
        return data
    chosen = np.random.default_rng(SUBSET_SEED).permutation(len(data.train_images))
    kept = torch.from_numpy(chosen[: config.examples])
    return replace(data, train_images=data.train_images[kept], train_labels=data.train_labels[kept])


def load_mnist(input: str = "binary", cache: Path | None = None) -> ImageData:
    """All of MNIST as tensors.

    Args:
        input: "binary" (the paper's; a pixel is 0 or 1) or "grey" (grey level / 255).
        cache: where the expanded files are kept; by default `default_cache()`.

    Raises:
        DataError: the cache cannot be written, or an embedded file is damaged.
    """
    cache = cache or default_cache()
    expand(cache)
    _make_torchvision_importable()
    from torchvision.datasets import MNIST

    tensors = []
    for train in (True, False):
        digits = MNIST(str(cache), train=train, download=False)
        tensors += [_pixels(digits.data[:, None], input), digits.targets]
    return ImageData(*tensors)


def _pixels(levels: torch.Tensor, input: str) -> torch.Tensor:
    """Pixels in [0, 1] of uint8 levels, the same shape, float32."""
    return (levels > INK).float() if input == "binary" else levels.float().div_(255)


def default_cache() -> Path:
    """$BNVIZ_CACHE, else `bnviz` in the user's cache folder."""
    if chosen := os.environ.get("BNVIZ_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bnviz"


def expand(cache: Path) -> None:
    """Expand the embedded files into `cache`, unless they are there and whole.

    Each file is written aside and moved into place, so an interrupted run leaves nothing half
    written and two processes may do this at the same moment. A damaged file is replaced.

    Raises:
        DataError: the cache cannot be written, or an embedded file is damaged.
    """
    raw = cache / "MNIST" / "raw"  # the folder torchvision looks into
    for name, md5 in MD5.items():
        target = raw / name
        try:
            if target.is_file() and hashlib.md5(target.read_bytes()).hexdigest() == md5:
                continue
            content = gzip.decompress((ASSETS / f"{name}.gz").read_bytes())
        except (OSError, EOFError) as error:
            raise DataError(
                f"cannot read the embedded data file {name}: {error}; check the folder {ASSETS}"
            ) from error
        if hashlib.md5(content).hexdigest() != md5:
            raise DataError(
                f"the embedded file {ASSETS / name}.gz is damaged (its md5 differs); "
                "restore it from the repository"
            )
        try:
            raw.mkdir(parents=True, exist_ok=True)
            descriptor, aside = tempfile.mkstemp(prefix=f".{name}-", dir=raw)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(aside, target)
        except OSError as error:
            raise DataError(
                f"cannot write the data cache {cache}: {error.strerror}; "
                "set BNVIZ_CACHE to a folder that can be written"
            ) from error


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


def _make_torchvision_importable() -> None:
    """Let torchvision import beside a CPU-only torch.

    The registry's torchvision is built for CUDA. Beside a CPU-only torch its compiled operators
    cannot be loaded, yet `torchvision/_meta_registrations.py` (0.28) registers fakes for two of
    them, `nms` and `qnms`, and fails with "operator torchvision::nms does not exist". Declaring
    the two is enough to import; nothing here calls them. Where the operators load, this does
    nothing.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("torchvision is not installed; run: pip install -r requirements.txt")
    for library in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:
            break
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor"
            )
