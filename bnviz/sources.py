"""Where the files of a data set lie, and what is wrong with them, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

from bnviz import folders, inception
from bnviz.config import ConfigError, RunConfig
from bnviz.settings import DATASETS, OVER_BATCH, DataConfig

EMBEDDED = Path(__file__).resolve().parent / "assets" / "mnist"

HELD_OUT = {"folder": "test", "imagenet": "val"}
"""The data sets that are folders of images, with the folder of those that are not trained on."""

COPIES_WITH_BN, COPIES_WITHOUT_BN = 3, 2
"""Activations that a layer keeps for its gradients: before and after BN, and after the ReLU."""

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
    if dataset in HELD_OUT:
        splits = ("train", HELD_OUT[dataset])
        return bool(folder) and all((folder_of(folder) / split).is_dir() for split in splits)
    if dataset not in FILES:  # synthetic
        return True
    found, archive = find(dataset, folder)
    return archive is not None or len(found) == len(FILES[dataset].md5)


class Look(NamedTuple):
    """What is wrong with a data set by itself, and where nothing is, how many images there are."""

    problems: list[str]
    train: int
    test: int


def check(configs: Iterable[RunConfig]) -> None:
    """Raises ConfigError, with each sentence once, where the data of some runs is not as they need
    it (`problems`)."""
    wanted = list(configs)
    looks = {data: look(data) for data in dict.fromkeys(config.data for config in wanted)}
    sentences = [s for config in wanted for s in problems(config, looks[config.data])]
    if sentences:
        raise ConfigError(list(dict.fromkeys(sentences)))


def look(data: DataConfig) -> Look:
    """A look at a data set, which takes seconds where it is a folder of a million images."""
    if known := DATASETS.get(data.dataset):
        return Look(data_problems(data), known.train, known.test)
    found, train, test = contents(data)
    return Look(found, *(sum(map(len, classes.values())) for classes in (train, test)))


def problems(config: RunConfig, looked: Look | None = None) -> list[str]:
    """Why the data that a run asks for cannot be had: a sentence each. No image is read beyond its
    header.

    Args:
        looked: what a look at its data set has shown, where that was just taken.
    """
    data = config.data
    wrong, train, test = looked or look(data)
    if wrong:
        return wrong
    known = data.dataset in DATASETS
    found = []
    if not known:
        found += _too_few(config, train, test)
        train = data.examples or train  # a folder is read in part, other data sets as a whole
    needed = 0 if data.is_streamed else (train + test) * data.pixels * 4 * COPIES
    free = psutil.virtual_memory().available
    if needed > free:
        smaller = "data.image_size or fewer data.examples" if not known else "data set"
        found.append(
            f"{data.dataset}: its images need {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; choose a smaller {smaller}, or end other programs"
        )
    return found


def memory_problem(config: RunConfig) -> str:
    """Why an Inception cannot train on this machine's processor with its batch; "" if it can, and
    for other networks, which are small."""
    model, batch = config.model, config.training.batch_size
    if not model.is_inception:
        return ""
    plan = inception.plan(model.kind, model.inception_channels)
    known = DATASETS.get(config.data.dataset)
    side = known.side if known else config.data.image_size
    copies = COPIES_WITH_BN if model.normalization != "none" else COPIES_WITHOUT_BN
    each = plan.activations(side) * 4 * copies
    free = psutil.virtual_memory().available
    if each * batch <= free:
        return ""
    return (
        f"training.batch_size = {batch}: its activations need about {each * batch / 1e9:.1f} GB of "
        f"memory, and {free / 1e9:.1f} GB are free; choose at most {int(free // each)}, or end "
        "other programs"
    )


def no_folder_problem(data: DataConfig) -> str:
    """What to say where a folder of images is to be read and none is named; else ""."""
    if data.folder or data.dataset not in HELD_OUT:
        return ""
    return (
        "data.folder is empty: name the folder that holds the images, in train/CLASS/ and "
        f"{HELD_OUT[data.dataset]}/CLASS/"
    )


def contents(data: DataConfig) -> folders.Contents:
    """What is in a data set that is a folder of images, and what is wrong with it."""
    if problem := no_folder_problem(data):
        return folders.Contents([problem], {}, {})
    try:
        return folders.look(folder_of(data.folder), HELD_OUT[data.dataset], data.unreadable)
    except OSError as error:
        sentence = (
            f"data.folder: cannot read {error.filename}: {error.strerror}; give this user the "
            "right to, or choose another folder"
        )
        return folders.Contents([sentence], {}, {})


def data_problems(data: DataConfig) -> list[str]:
    """What is wrong with a data set by itself, whoever trains on it."""
    if data.dataset in HELD_OUT:
        return contents(data).problems
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
