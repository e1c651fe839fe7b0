"""Folders of images, a folder for each class: what is in them, and what is wrong."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of image files; those of `torchvision.datasets.ImageFolder`, which passes over all others."""

HEADERS = 200
"""Images that are looked into before a start, evenly spaced. All are read after it."""

NAMED = 3
"""How many things at fault are named in a sentence."""


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


def shown(path: str) -> str:
    """A path as text: file names are bytes, which need not be text."""
    return os.fsencode(path).decode(errors="backslashreplace")


class Contents(NamedTuple):
    """What is wrong with a folder, a sentence each, and the images of each class, as far as they
    were looked for."""

    problems: list[str]
    train: dict[str, list[str]]
    test: dict[str, list[str]]


def look(folder: Path, held_out: str, unreadable: str) -> Contents:
    """A look at a folder that is to hold images in train/CLASS/ and HELD_OUT/CLASS/. No image is
    read beyond its header, and none where those that cannot be read are to be passed over.

    Args:
        unreadable: `DataConfig.unreadable`.

    Raises:
        OSError: a folder cannot be read.
    """
    layout = f"the images in train/CLASS/ and {held_out}/CLASS/"
    if not folder.is_dir():
        sentence = f"data.folder: there is no folder {folder}; name the one that holds {layout}"
        return Contents([sentence], {}, {})
    if missing := [split for split in ("train", held_out) if not (folder / split).is_dir()]:
        packed = [f"{path.name} is there" for split in missing for path in _packed(folder, split)]
        why = f" ({', '.join(packed)}, and must be unpacked)" if packed else ""
        sentence = (
            f"data.folder: {folder} has no folder {' and no folder '.join(missing)}{why}; it must "
            f"hold {layout}"
        )
        return Contents([sentence], {}, {})
    train, test = (image_files(folder / split) for split in ("train", held_out))
    found = [
        sentence
        for split, classes in (("train", train), (held_out, test))
        if (sentence := _half_unpacked(folder / split, classes))
    ]
    if len(train) < 2:
        what = "no class" if not train else f"the one class {next(iter(train))}"
        found.append(
            f"{folder / 'train'} has {what}; there must be two at least, each a folder of images"
        )
    if not test:
        found.append(f"{folder / held_out} has no class; it must hold a folder of images for each")
    if unknown := [name for name in test if name not in train]:
        found.append(
            f"{folder / held_out} has {names(unknown)}, which {folder / 'train'} has not; add "
            "training images, or remove the folder"
        )
    if not found and unreadable == "refuse":
        found = _header_problems(list(chain(*train.values(), *test.values())))
    return Contents(found, train, test)


def _packed(folder: Path, split: str) -> list[Path]:
    """Archives of a split, as ImageNet comes."""
    return sorted(folder.glob(f"*{split}*.tar*"))


def _half_unpacked(split: Path, classes: dict[str, list[str]]) -> str:
    """Why the folders of the classes do not hold all of a split; "" where they seem to."""
    if archives := sorted(path.name for path in split.glob("*.tar*")):
        return (
            f"{split} holds archives: {names(archives)}; unpack each into a folder of its name, "
            "and remove it"
        )
    if empty := [name for name, images in classes.items() if not images]:
        return (
            f"{split}: no images in {names(empty)}; put some there (their names end in "
            f"{', '.join(ENDINGS)}), or remove the folder"
        )
    loose = [entry.name for entry in os.scandir(split) if entry.name.lower().endswith(ENDINGS)]
    if loose and not classes:
        return (
            f"{split} holds images without folders of their classes ({names(sorted(loose))}); put "
            "each into the folder of its class"
        )
    return ""


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
    return [f"not images that can be read: {names(bad)}; replace or remove them"]


def names(items: list[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(map(shown, items[:NAMED])) + more
