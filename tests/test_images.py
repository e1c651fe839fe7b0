"""Data sets read from files, against the files themselves and torchvision."""

import gzip
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bnviz import data, folders, images, sources, synthetic
from bnviz.records import Metrics, Percentiles
from bnviz.settings import DataConfig
from bnviz.training import train

from . import fakes
from .conftest import small

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNVIZ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Known files ------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not DEBIAN.is_dir(), reason=f"{DEBIAN} is not there (apt install dataset-fashion-mnist)"
)
def test_the_real_fashion_mnist_is_read(cache):
    config = DataConfig(dataset="fashion_mnist", folder=str(DEBIAN), input="grey")
    fashion = data.load(config)
    assert torch.bincount(fashion.train_labels).tolist() == [6_000] * 10
    assert torch.bincount(fashion.test_labels).tolist() == [1_000] * 10
    raw = gzip.decompress((DEBIAN / "t10k-images-idx3-ubyte.gz").read_bytes())
    levels = np.frombuffer(raw, np.uint8, offset=16).reshape(10_000, 1, 28, 28)
    np.testing.assert_array_equal((fashion.test_images * 255).round().numpy(), levels)


@pytest.mark.parametrize("layout", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("gzipped", [True, False])
def test_fashion_mnist_is_found_in_a_folder(tmp_path, monkeypatch, rng, layout, gzipped):
    contents = fakes.fashion(rng)
    fakes.known_as(monkeypatch, "fashion_mnist", contents)
    fakes.write(tmp_path / "mine" / layout, contents, gzipped=gzipped)
    config = DataConfig(dataset="fashion_mnist", folder=str(tmp_path / "mine"), input="grey")
    loaded = data.load(config)
    levels = np.frombuffer(contents["train-images-idx3-ubyte"], np.uint8, offset=16)
    assert loaded.train_images.shape == (20, 1, 28, 28)
    np.testing.assert_array_equal((loaded.train_images * 255).round().flatten().numpy(), levels)
    assert loaded.test_labels.tolist() == list(range(10))


@pytest.mark.parametrize("layout", ["folder", "batches", "archive"])
def test_cifar10_is_found_in_a_folder_in_colour_and_grey(tmp_path, monkeypatch, rng, layout):
    contents = fakes.cifar(rng)
    fakes.known_as(monkeypatch, "cifar10", contents)
    mine = tmp_path / "mine"
    if layout == "archive":
        packed = fakes.tar(contents, "cifar-10-batches-py")
        fakes.write(mine, {"cifar-10-python.tar.gz": packed})
    else:
        fakes.write(mine / ("." if layout == "batches" else "cifar-10-batches-py"), contents)

    def load(pixels):
        config = DataConfig(dataset="cifar10", folder=str(mine), input=pixels)
        return data.load(config)

    stored = pickle.loads(contents["test_batch"])["data"].reshape(10, 3, 32, 32)
    colour = load("colour")
    assert colour.train_images.shape == (50, 3, 32, 32)
    np.testing.assert_array_equal((colour.test_images * 255).round().numpy(), stored)
    luminance = np.stack(
        [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in stored]
    )[:, None]
    grey = (load("grey").test_images * 255).round().numpy()
    np.testing.assert_array_equal(grey, luminance)
    np.testing.assert_array_equal(load("binary").test_images.numpy(), luminance > 127)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("packed", [True, False])
def test_an_unknown_pickle_is_never_opened(tmp_path, monkeypatch, rng, packed):
    contents = fakes.cifar(rng)
    fakes.known_as(monkeypatch, "cifar10", contents)
    trap = tmp_path / "sprung"
    for name in contents:
        changed = {**contents, name: pickle.dumps(Harmful(trap))}
        mine = tmp_path / name
        monkeypatch.setenv("BNVIZ_CACHE", str(tmp_path / f"cache-{name}"))
        archive = {"cifar-10-python.tar.gz": fakes.tar(changed, "any")}
        fakes.write(mine, archive if packed else changed)
        with pytest.raises(data.DataError, match=r"is damaged \(its md5 differs\); download"):
            data.load(DataConfig(dataset="cifar10", folder=str(mine), input="colour"))
    assert not trap.exists()


def test_damaged_and_missing_files_are_named(tmp_path, monkeypatch, rng):
    contents = fakes.fashion(rng)
    fakes.known_as(monkeypatch, "fashion_mnist", contents)
    mine = fakes.write(tmp_path / "mine", contents, gzipped=True)
    config = DataConfig(dataset="fashion_mnist", folder=str(mine))
    labels = mine / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-5])
    with pytest.raises(data.DataError, match=f"cannot read {labels}"):
        data.load(config)
    labels.unlink()
    with pytest.raises(data.DataError, match="the files of Fashion-MNIST are not in there"):
        data.load(config)
    with pytest.raises(data.DataError, match="python -m bnviz fetch fashion_mnist"):
        data.load(DataConfig(dataset="fashion_mnist"))


# Folders of images ------------------------------------------------------------------------------


def folder_config(folder, **values):
    return DataConfig(dataset="folder", folder=str(folder), **values)


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path, rng):
    mine = fakes.images(tmp_path / "mine", rng, size=(16, 16))
    (mine / "train" / "cat" / "more").mkdir()
    os.rename(mine / "train" / "cat" / "0.png", mine / "train" / "cat" / "more" / "0.PNG")
    (mine / "train" / "cat" / "notes.txt").write_text("no image")
    loaded = data.load(folder_config(mine, input="colour", image_size=16))
    images.make_torchvision_importable()
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert IMG_EXTENSIONS == folders.ENDINGS
    theirs = ImageFolder(str(mine / "train"))
    found = folders.image_files(mine / "train")
    assert [path for paths in found.values() for path in paths] == [p for p, _ in theirs.samples]
    assert loaded.train_labels.tolist() == theirs.targets
    expected = np.stack([np.asarray(image) for image, _ in theirs]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal((loaded.train_images * 255).round().numpy(), expected)


def test_labels_of_the_test_images_are_those_of_training(tmp_path, rng):
    mine = fakes.images(tmp_path / "mine", rng, classes=("ant", "bee", "cow"))
    for path in (mine / "test" / "ant").iterdir():
        path.unlink()
    (mine / "test" / "ant").rmdir()
    loaded = data.load(folder_config(mine))
    assert set(loaded.test_labels.tolist()) == {1, 2}
    assert loaded.classes == 3


@pytest.mark.parametrize(("pixels", "channels"), [("binary", 1), ("grey", 1), ("colour", 3)])
def test_images_are_brought_to_size_and_channels(tmp_path, rng, pixels, channels):
    mine = fakes.images(tmp_path / "mine", rng)
    loaded = data.load(folder_config(mine, input=pixels, image_size=9))
    assert loaded.train_images.shape == (12, channels, 9, 9)
    dark, bright = (loaded.train_images[loaded.train_labels == i] for i in (0, 1))
    assert dark.max() < 0.25 < 0.75 < bright.min()  # levels below 50, and from 200 on
    assert set(loaded.train_images.unique().tolist()) == {0, 1} or pixels != "binary"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I"])
def test_images_of_every_mode_keep_their_brightness(tmp_path, mode):
    levels = np.array([[0, 255], [255, 0]], np.uint8)
    if mode.startswith("I"):
        wide = levels.astype(np.uint16 if mode == "I;16" else np.int32) * 257
        image = Image.fromarray(wide)
    else:
        image = Image.fromarray(levels).convert("RGB").convert(mode)
    path = tmp_path / "image.tif" if mode in ("CMYK", "I") else tmp_path / "image.png"
    image.save(path)
    read = images.read_image(str(path), 2, colour=False)
    np.testing.assert_array_equal(read[:, :, 0], levels)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_broken_image_is_named(tmp_path, rng, ending, damage):
    path = tmp_path / f"image.{ending}"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"\0" * len(whole))
    with pytest.raises(data.DataError, match=f"cannot read the image {path}: .*; replace"):
        images.read_image(str(path), 28, colour=True)


def test_pixels_without_a_range_are_refused(tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(data.DataError, match="floating-point"):
        images.read_image(str(path), 4, colour=False)


def test_a_subset_of_a_folder_is_read_and_nothing_else(tmp_path, rng):
    mine = fakes.images(tmp_path / "mine", rng, train=10)
    two, five = (data.load(folder_config(mine, examples=n)) for n in (2, 5))
    assert torch.equal(two.train_images, five.train_images[:2])
    assert len(five.test_images) == 6
    chosen = np.random.default_rng(images.SUBSET_SEED).permutation(20)[:5]
    assert five.train_labels.tolist() == (chosen >= 10).astype(int).tolist()


def test_a_folder_of_colour_images_is_learned_by_a_cnn(tmp_path, rng):
    mine = fakes.images(tmp_path / "mine", rng, train=20, test=10)
    config = small(
        data__dataset="folder",
        data__folder=str(mine),
        data__input="colour",
        data__image_size=12,
        model__kind="cnn",
        model__channels=[4],
        model__kernel=3,
        model__hidden=[8],
        training__batch_size=10,
        training__steps=40,
        trace__probe_size=20,
    )
    records = list(train(config))
    assert [r for r in records if isinstance(r, Metrics)][-1].accuracy == 1
    assert {r.layer for r in records if isinstance(r, Percentiles)} == {"conv1", "hidden1"}


# Synthetic patterns -----------------------------------------------------------------------------


def test_synthetic_patterns_are_the_same_everywhere():
    (levels, labels), (test_levels, test_labels) = synthetic.generate()
    assert (levels.shape, test_levels.shape) == ((6_000, 1, 28, 28), (1_000, 1, 28, 28))
    assert (levels.dtype, labels.dtype) == (np.uint8, np.int64)
    assert set(labels) == set(test_labels) == set(range(10))
    assert hashlib.md5(levels.tobytes()).hexdigest() == "39b98904c5459df985de1d84ef642e93"
    assert (levels > 127).mean() == pytest.approx(0.5, abs=0.05)


def test_synthetic_patterns_are_learned_with_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "EMBEDDED", tmp_path / "nowhere")
    monkeypatch.setenv("BNVIZ_CACHE", "/dev/null")
    config = small(data__dataset="synthetic", trace__records=0)
    assert [r for r in train(config) if isinstance(r, Metrics)][-1].accuracy > 0.9
