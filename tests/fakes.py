"""Small stand-ins for data sets: archives of the real layout with a few images, and folders."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
from PIL import Image

from bnviz import sources


def idx(array):
    """An IDX file as MNIST has them, of a uint8 array."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def fashion(rng):
    """Expanded files by name: 20 training and 10 test images."""
    return {
        f"{split}-{kind}-ubyte": idx(array)
        for split, count in (("train", 20), ("t10k", 10))
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28))),
            ("labels-idx1", np.arange(count) % 10),
        )
    }


def cifar(rng):
    """Files by name: six batches of 10 images, and the names of the classes."""
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {
        name: pickle.dumps(
            {
                "data": rng.integers(0, 256, (10, 3072)).astype(np.uint8),
                "labels": list(range(10)),
            }
        )
        for name in batches
    }
    return {**files, "batches.meta": pickle.dumps({"label_names": list("abcdefghij")})}


def md5(content):
    return hashlib.md5(content).hexdigest()


def known_as(monkeypatch, dataset, contents):
    """Let these files be taken for those of the data set."""
    changed = sources.FILES[dataset]._replace(md5={k: md5(v) for k, v in contents.items()})
    monkeypatch.setitem(sources.FILES, dataset, changed)
    if dataset == "cifar10":
        from bnviz.images import make_torchvision_importable

        make_torchvision_importable()
        from torchvision.datasets import CIFAR10

        train = [[name, digest] for name, digest in changed.md5.items() if "data_" in name]
        test = [[name, digest] for name, digest in changed.md5.items() if "test_" in name]
        meta = {**CIFAR10.meta, "md5": changed.md5["batches.meta"]}
        monkeypatch.setattr(CIFAR10, "train_list", train)
        monkeypatch.setattr(CIFAR10, "test_list", test)
        monkeypatch.setattr(CIFAR10, "meta", meta)


def tar(contents, folder):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def write(folder, contents, *, gzipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / (f"{name}.gz" if gzipped else name)
        path.write_bytes(gzip.compress(content) if gzipped else content)
    return folder


def images(folder, rng, train=6, test=3, classes=("cat", "dog"), size=(20, 12)):
    """A folder of PNG images, dark in the first class and bright in the others."""
    for split, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            at = folder / split / name
            at.mkdir(parents=True)
            for i in range(count):
                base = 200 if number else 0
                pixels = base + rng.integers(0, 50, (size[1], size[0], 3))
                Image.fromarray(pixels.astype(np.uint8)).save(at / f"{i}.png")
    return folder
