"""Where the files of a data set lie, and what is wrong with them, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import psutil
from PIL import Image, UnidentifiedImageError

from bnviz.config import ConfigError, RunConfig
from bnviz.settings import DATASETS, OVER_BATCH, DataConfig

EMBEDDED = Path(__file__).resolve().parent / "assets" / "mnist"

LAYOUT = "the images in train/CLASS/ and test/CLASS/"

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of image files; those of `torchvision.datasets.ImageFolder`, which passes over all others."""

HEADERS = 200
"""Images of a folder that are looked into before a start, evenly spaced. All are read after it."""

NAMED = 3
"""How many things at fault are named in a sentence."""

COPIES = 1.5
"""Memory that loading takes at its peak, in parts of what the images take after it."""


class Files(NamedTuple):
    """The files of a data set: names, md5 when expanded, and where torchvision looks for them."""

    title: str
    folder: str
    md5: dict[str, str]
    archive: str = ""
    """A tar file that holds them all."""
    download_bytes: int = 0


FILES = {
    "mnist": Files(
        "MNIST",
        "MNIST/raw",
        {
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
    "fashion_mnist": Files(
        "Fashion-MNIST",
        "FashionMNIST/raw",
        {
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
        download_bytes=30_878_645,
    ),
    "cifar10": Files(
        "CIFAR-10",
        "cifar-10-batches-py",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        archive="cifar-10-python.tar.gz",
        download_bytes=170_498_071,
    ),
}


def default_cache() -> Path:
    """$BNVIZ_CACHE, else `bnviz` in the user's cache folder."""
    if chosen := os.environ.get("BNVIZ_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bnviz"


def folder_of(folder: str) -> Path:
    """The folder that `data.folder` names, whole: a worker runs in another folder than who starts
    it."""
    return Path(os.path.abspath(os.path.expanduser(folder)))


def download_size(dataset: str) -> int:
    """Bytes that `python -m bnviz fetch` downloads; 0 where there is nothing to download."""
    return FILES[dataset].download_bytes if dataset in FILES else 0


def find(dataset: str, folder: str = "") -> tuple[dict[str, Path], Path | None]:
    """Where the files of a data set lie: each that lies by itself, gzipped or not, and the archive
    of all of them, where there is one.

    Args:
        folder: as `DataConfig.folder`; empty: where downloads are kept.
    """
    files = FILES[dataset]
    home = EMBEDDED if dataset == "mnist" else folder_of(folder) if folder else default_cache()
    places = (home, home / Path(files.folder).name, home / files.folder)
    found = {
        name: path
        for name in files.md5
        for place in reversed(places)
        for path in (place / f"{name}.gz", place / name)
        if path.is_file()
    }
    archive = home / files.archive if files.archive else None
    return found, archive if archive and archive.is_file() else None


def is_here(dataset: str, folder: str = "") -> bool:
    """Whether the files of a data set are there, whatever is in them."""
    if dataset == "folder":
        splits = ("train", "test")
        return bool(folder) and all((folder_of(folder) / split).is_dir() for split in splits)
    if dataset not in FILES:  # synthetic
        return True
    found, archive = find(dataset, folder)
    return archive is not None or len(found) == len(FILES[dataset].md5)


def check(configs: Iterable[RunConfig]) -> None:
    """Raises ConfigError, with each sentence once, where the data of some runs is not as they need
    it (`problems`)."""
    sentences = [sentence for config in configs for sentence in problems(config)]
    if sentences:
        raise ConfigError(list(dict.fromkeys(sentences)))


def problems(config: RunConfig) -> list[str]:
    """Why the data that a run asks for cannot be had: a sentence each. No image is read beyond its
    header."""
    data = config.data
    if found := data_problems(data):
        return found
    if known := DATASETS.get(data.dataset):
        train, test = known.train, known.test
    else:
        train, test = (
            sum(map(len, image_files(folder_of(data.folder) / split).values()))
            for split in ("train", "test")
        )
        found += _too_few(config, train, test)
        train = data.examples or train  # a folder is read in part, other data sets as a whole
    needed = (train + test) * data.pixels * 4 * COPIES
    free = psutil.virtual_memory().available
    if needed > free:
        smaller = "data.image_size or fewer data.examples" if not known else "data set"
        found.append(
            f"{data.dataset}: its images need {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; choose a smaller {smaller}, or end other programs"
        )
    return found


def data_problems(data: DataConfig) -> list[str]:
    """What is wrong with a data set by itself, whoever trains on it."""
    folder = folder_of(data.folder)
    if data.dataset == "folder":
        try:
            return _folder_problems(folder)
        except OSError as error:
            return [
                f"data.folder: cannot read {error.filename}: {error.strerror}; give this user the "
                "right to, or choose another folder"
            ]
    if is_here(data.dataset, data.folder):
        return []
    files = FILES[data.dataset]
    if not data.folder:
        return [
            f"{files.title} is not here yet; download it with python -m bnviz fetch "
            f"{data.dataset}, or name a folder that holds its files in data.folder"
        ]
    names = ", ".join(files.md5)
    return [
        f"data.folder = {data.folder!r}: the files of {files.title} are not in there ({names}); "
        f"name a folder that holds them, or leave it empty and download them with python -m bnviz "
        f"fetch {data.dataset}"
    ]


def image_files(split: Path) -> dict[str, list[str]]:
    """The images of each class, in the order of `torchvision.datasets.ImageFolder`.

    Raises:
        OSError: the folder cannot be read.
    """
    classes = sorted(entry.name for entry in os.scandir(split) if entry.is_dir())
    return {
        name: [
            os.path.join(at, file)
            for at, _, files in sorted(os.walk(split / name, followlinks=True))
            for file in sorted(files)
            if file.lower().endswith(ENDINGS)
        ]
        for name in classes
    }


def _folder_problems(folder: Path) -> list[str]:
    if not folder.is_dir():
        return [f"data.folder: there is no folder {folder}; name the one that holds {LAYOUT}"]
    if missing := [split for split in ("train", "test") if not (folder / split).is_dir()]:
        return [
            f"data.folder: {folder} has no folder {' and no folder '.join(missing)}; it must hold "
            f"{LAYOUT}"
        ]
    train, test = (image_files(folder / split) for split in ("train", "test"))
    found = []
    for split, classes in (("train", train), ("test", test)):
        if empty := [name for name, images in classes.items() if not images]:
            found.append(
                f"{folder / split}: no images in {_names(empty)}; put some there (their names end "
                f"in {', '.join(ENDINGS)}), or remove the folder"
            )
    if len(train) < 2:
        what = "no class" if not train else f"the one class {next(iter(train))}"
        found.append(
            f"{folder / 'train'} has {what}; there must be two at least, each a folder of images"
        )
    if not test:
        found.append(f"{folder / 'test'} has no class; it must hold a folder of images for each")
    if unknown := [name for name in test if name not in train]:
        found.append(
            f"{folder / 'test'} has {_names(unknown)}, which {folder / 'train'} has not; add "
            "training images, or remove the folder"
        )
    return found or _header_problems(list(chain(*train.values(), *test.values())))


def _header_problems(images: list[str]) -> list[str]:
    bad = []
    for path in images[:: -(-len(images) // HEADERS)]:
        try:
            with Image.open(path) as image:
                if image.mode == "F":
                    bad.append(f"{path} (its pixels are floating-point numbers)")
        except UnidentifiedImageError:
            bad.append(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            bad.append(f"{path} ({error})")
    if not bad:
        return []
    return [f"not images that can be read: {_names(bad)}; replace or remove them"]


def _names(items: list[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more


def _too_few(config: RunConfig, train: int, test: int) -> list[str]:
    limits = [
        ("training.batch_size", config.training.batch_size, "training", train),
        ("data.examples", config.data.examples, "training", train),
    ]
    if config.trace.probe == "heldout":
        limits.append(("trace.probe_size", config.trace.probe_size, "test", test))
    few = [
        f"{folder_of(config.data.folder)} has one test image; statistics of a batch need two at "
        "least, so add some, or choose model.normalization = none"
    ]
    return (few if test == 1 and config.model.normalization in OVER_BATCH else []) + [
        f"{path} = {wanted}: {folder_of(config.data.folder)} has {there:,} {split} images; choose "
        f"at most {there:,}"
        for path, wanted, split, there in limits
        if wanted > there
    ]
