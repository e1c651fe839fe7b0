"""Data sets read from their files, as grey levels or colours from 0 to 255.

The files of MNIST (LeCun & Cortes, CC BY-SA 3.0) come with the project, those of Fashion-MNIST and
CIFAR-10 from a folder of the user's or a download. They are expanded once into a cache, each when
its md5 is the known one, and read by torchvision's classes; nothing else is ever unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bnviz import folders, sources, synthetic
from bnviz.settings import DataConfig

SUBSET_SEED = 0
"""Picks the training examples of a subset: the same for every run, and more of them add to it."""

MAX_FILE_BYTES = 50_000_000
"""No file of a known data set is larger when expanded, so one that is cannot be the right one."""

CHUNK = 1_000
"""Images turned grey at a time, so that little memory is taken beside them."""

Levels = tuple[torch.Tensor, torch.Tensor]
"""uint8 (n, channels, height, width), and int64 classes from 0, (n,)."""


class DataError(RuntimeError):
    """The data cannot be made ready; the message says what to do."""


def read(
    config: DataConfig, cache: Path | None = None, unreadable: dict[str, str] | None = None
) -> tuple[Levels, Levels]:
    """Training examples, `config.examples` of them where that is set, and test examples.

    Args:
        cache: where expanded files are kept; by default `bnviz.sources.default_cache()`.
        unreadable: filled with the image files that are passed over, and why.

    Raises:
        DataError: a file is missing or damaged, or the cache cannot be written.
    """
    if problems := sources.data_problems(config):
        raise DataError("; ".join(problems))
    if config.dataset == "folder":
        return _read_folder(config, {} if unreadable is None else unreadable)
    (images, labels), test = _read_known(config, cache or sources.default_cache())
    if config.examples:
        kept = torch.from_numpy(subset(config, len(labels)))
        images, labels = images[kept], labels[kept]
    return (images, labels), test


def subset(config: DataConfig, count: int) -> np.ndarray:
    """Which of `count` training examples are used, in which order. Those of a folder are listed by
    class, so for shards they are mixed: a shard has some of many classes."""
    if not config.examples and config.shuffling == "thorough":
        return np.arange(count)
    return np.random.default_rng(SUBSET_SEED).permutation(count)[: config.examples or count]


def _read_known(config: DataConfig, cache: Path) -> tuple[Levels, Levels]:
    if config.dataset == "synthetic":
        made, for_test = synthetic.generate()
        return _tensors(*made), _tensors(*for_test)
    expand(cache, config.dataset, config.folder)
    make_torchvision_importable()
    from torchvision import datasets

    splits: list[Levels] = []
    for train in (True, False):
        if config.dataset == "cifar10":
            photos = datasets.CIFAR10(str(cache), train=train)
            levels = torch.from_numpy(photos.data).permute(0, 3, 1, 2)  # (n, 3, 32, 32)
            if config.input != "colour":
                levels = torch.cat([_luminance(chunk) for chunk in levels.split(CHUNK)])
            splits.append((levels, torch.tensor(photos.targets)))
        else:
            known = datasets.MNIST if config.dataset == "mnist" else datasets.FashionMNIST
            pictures = known(str(cache), train=train)
            splits.append((pictures.data[:, None], pictures.targets))
    return splits[0], splits[1]


def _tensors(levels: np.ndarray, labels: np.ndarray) -> Levels:
    return torch.from_numpy(levels), torch.from_numpy(labels)


def _luminance(colours: torch.Tensor) -> torch.Tensor:
    """(n, 1, height, width) of (n, 3, height, width), uint8: 0.299 R + 0.587 G + 0.114 B (ITU-R
    BT.601), rounded as Pillow does."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)  # times 2^16
    weighted = colours.to(torch.int32) * weights[:, None, None]
    total = weighted.sum(1, keepdim=True, dtype=torch.int32) + 2**15
    return (total >> 16).to(torch.uint8)


# Folders of images ------------------------------------------------------------------------------


def _read_folder(config: DataConfig, unreadable: dict[str, str]) -> tuple[Levels, Levels]:
    """Images in FOLDER/train/CLASS/ and FOLDER/test/CLASS/, brought to one size."""
    make_torchvision_importable()
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    folder = sources.folder_of(config.folder)
    try:
        train = ImageFolder(str(folder / "train"))
        # Not an ImageFolder: where test lacks a class, that would number the others differently.
        test = make_dataset(
            str(folder / "test"), train.class_to_idx, IMG_EXTENSIONS, allow_empty=True
        )
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error}; check the folder") from error
    chosen = [train.samples[i] for i in subset(config, len(train.samples))]
    levels = [_read_images(samples, config, unreadable) for samples in (chosen, test)]
    return levels[0], levels[1]


def _read_images(
    samples: list[tuple[str, int]], config: DataConfig, unreadable: dict[str, str]
) -> Levels:
    channels, side = (3 if config.input == "colour" else 1), config.image_size
    levels = torch.empty((len(samples), channels, side, side), dtype=torch.uint8)
    labels: list[int] = []
    for path, label in samples:
        try:
            pixels = read_image(path, side, colour=channels == 3)
        except DataError as error:
            if config.unreadable == "refuse":
                raise
            unreadable[folders.shown(path)] = str(error.__cause__)
            continue
        levels[len(labels)].copy_(torch.from_numpy(pixels).permute(2, 0, 1))
        labels.append(label)
    return levels[: len(labels)], torch.tensor(labels, dtype=torch.int64)


def read_image(path: str, side: int, *, colour: bool) -> np.ndarray:
    """An image file as (side, side, channels) uint8: its luminance or three colours, stretched to
    a square.

    Raises:
        DataError: it cannot be read, or not to its end.
    """
    try:
        with Image.open(path) as file:
            image = as_colours_or_grey(file, colour=colour)
            image = image.resize((side, side), Image.Resampling.BILINEAR)
            return np.array(image).reshape(side, side, -1)
    except Exception as error:  # a broken file can make a decoder raise anything
        raise DataError(
            f"cannot read the image {folders.shown(path)}: {error}; replace or remove it, or "
            "choose data.unreadable = skip"
        ) from error


def as_colours_or_grey(image: Image.Image, *, colour: bool) -> Image.Image:
    """An image with three colours, or its luminance, read to its end. Raises whatever a broken file
    makes a decoder raise."""
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    return image.convert("RGB" if colour else "L")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey levels from 0 to 255 of those from 0 to 65,535, which Pillow would cut off at 255."""
    levels = np.asarray(image).astype(np.int64) >> 8
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


# Known files ------------------------------------------------------------------------------------


def expand(cache: Path, dataset: str = "mnist", folder: str = "") -> None:
    """Expand the files of a data set into `cache`, unless they are there and whole.

    Each file is written aside and moved into place, so an interrupted run leaves nothing half
    written and two processes may do this at the same moment. A damaged file is replaced.

    Args:
        folder: as `DataConfig.folder`.

    Raises:
        DataError: the cache cannot be written, or a file is missing or damaged.
    """
    files = sources.FILES[dataset]
    raw = cache / files.folder
    wanted = {name for name, md5 in files.md5.items() if not is_whole(raw / name, md5)}
    if not wanted:
        return
    for name, origin, content in _contents(dataset, folder, wanted):
        if hashlib.md5(content).hexdigest() != files.md5[name]:
            raise DataError(f"{origin} is damaged (its md5 differs); {_anew(dataset)}")
        _write(raw, name, content, cache)
        wanted.discard(name)
    if wanted:
        missing = ", ".join(sorted(wanted))
        raise DataError(f"{files.title} lacks {missing}; {_anew(dataset)}")


def is_whole(path: Path, md5: str) -> bool:
    """Whether a file is there and what it should be."""
    try:
        return path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() == md5
    except OSError:
        return False


def _contents(dataset: str, folder: str, wanted: set[str]) -> Iterator[tuple[str, Path, bytes]]:
    """Name, origin and content of the files wanted that are there, expanded."""
    found, archive = sources.find(dataset, folder)
    origin: Path | None = None
    try:
        for name in wanted & set(found):
            origin = found[name]
            with gzip.open(origin) if origin.suffix == ".gz" else open(origin, "rb") as file:
                content = file.read(MAX_FILE_BYTES)
            yield name, origin, content
        origin = archive
        if archive and wanted - set(found):
            with tarfile.open(archive) as tar:
                for member in tar:
                    name = Path(member.name).name
                    packed = tar.extractfile(member) if name in wanted - set(found) else None
                    if packed:
                        yield name, archive, packed.read(MAX_FILE_BYTES)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"cannot read {origin}: {error}; {_anew(dataset)}") from error


def _anew(dataset: str) -> str:
    if dataset == "mnist":
        return f"restore {sources.EMBEDDED} from the repository"
    return f"download it anew with python -m bnviz fetch {dataset}, or name another data.folder"


def _write(raw: Path, name: str, content: bytes, cache: Path) -> None:
    try:
        raw.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=f".{name}-", dir=raw)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(aside, raw / name)
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {cache}: {error.strerror}; "
            "set BNVIZ_CACHE to a folder that can be written"
        ) from error


def make_torchvision_importable() -> None:
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
