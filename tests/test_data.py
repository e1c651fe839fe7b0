import gzip
import hashlib
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from bnviz import data, images, sources
from bnviz.settings import DataConfig


def test_all_of_mnist_is_there(mnist):
    assert mnist.train_images.shape == (60_000, 1, 28, 28)
    assert mnist.test_images.shape == (10_000, 1, 28, 28)
    # Digits of each class in the original training set.
    assert torch.bincount(mnist.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip


def test_pixels_are_those_of_the_embedded_file(mnist):
    raw = gzip.decompress((sources.EMBEDDED / "t10k-images-idx3-ubyte.gz").read_bytes())
    grey = np.frombuffer(raw, np.uint8, offset=16).reshape(10_000, 1, 28, 28)
    np.testing.assert_array_equal(mnist.test_images.numpy(), grey > 127)
    shades = data.load_mnist("grey").test_images.numpy()
    np.testing.assert_allclose(shades, grey / 255, rtol=1e-6)


def whole(cache):
    return {
        name: hashlib.md5((cache / "MNIST" / "raw" / name).read_bytes()).hexdigest()
        for name in sources.FILES["mnist"].md5
    } == sources.FILES["mnist"].md5


def test_a_damaged_or_interrupted_cache_repairs_itself(tmp_path):
    images.expand(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").write_bytes(b"half a fi")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    images.expand(tmp_path)
    assert whole(tmp_path)


def test_two_processes_may_expand_at_the_same_moment(tmp_path):
    code = "import sys, pathlib; from bnviz import images; images.expand(pathlib.Path(sys.argv[1]))"
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert whole(tmp_path)
    assert sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir()) == sorted(
        sources.FILES["mnist"].md5
    )


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataError, match="set BNVIZ_CACHE"):
        images.expand(tmp_path / "file")


def test_a_damaged_embedded_file_is_named(tmp_path, monkeypatch):
    shutil.copytree(sources.EMBEDDED, tmp_path / "assets")
    monkeypatch.setattr(sources, "EMBEDDED", tmp_path / "assets")
    (tmp_path / "assets" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(data.DataError, match=r"t10k-labels-idx1-ubyte.gz is damaged"):
        images.expand(tmp_path / "cache")


CPU = torch.device("cpu")


def test_every_example_is_seen_once_an_epoch():
    batches = data.Minibatches(examples=60, batch_size=7, seed=1, device=CPU)
    seen = torch.cat([batches[step] for step in range(60)])  # 7 epochs
    assert set(Counter(seen.tolist()).values()) == {7}
    assert sorted(seen[:60].tolist()) == list(range(60))
    assert seen[:60].tolist() != seen[60:120].tolist()


def test_the_order_depends_on_seed_and_step_alone():
    def batch(seed, step):
        return data.Minibatches(100, 30, seed, CPU)[step].tolist()

    running = data.Minibatches(100, 30, 5, CPU)
    assert [running[step].tolist() for step in range(9)] == [batch(5, step) for step in range(9)]
    assert batch(5, 3) != batch(6, 3)


def test_shuffling_by_shards_keeps_each_shard_together():
    def epoch(step, **shards):
        batches = data.Minibatches(50, 50, 1, CPU, **shards)
        return batches[step].tolist()

    between = [epoch(step, shard_size=20) for step in (0, 1, 2)]
    for order in between:
        assert sorted(order) == list(range(50))
        at = {first: order.index(first) for first in (0, 20, 40)}
        for first, size in ((0, 20), (20, 20), (40, 10)):
            assert order[at[first] : at[first] + size] == list(range(first, first + size))
    assert len({tuple(order) for order in between}) > 1
    within = epoch(0, shard_size=20, within_shards=True)
    starts = [{n // 20 for n in within[i : i + 10]} for i in range(0, 50, 10)]
    assert all(len(shards) == 1 for shards in starts)  # from one shard at a time
    assert within != between[0]
    assert sorted(within) == list(range(50))


def test_a_subset_is_the_same_for_every_run_and_grows(mnist):
    one, two = (data.load(DataConfig(examples=n)).train_images for n in (50, 80))
    assert len(two) == 80
    assert torch.equal(one, two[:50])
    labels = data.load(DataConfig(examples=1000)).train_labels
    assert set(labels.tolist()) == set(range(10))


IMAGES, LABELS = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((IMAGES, LABELS, IMAGES / 0, LABELS), "test images have pixels that are not numbers"),
        ((IMAGES, LABELS * 0, IMAGES, LABELS * 0), "training images are all of one class"),
        ((IMAGES, LABELS[:3], IMAGES, LABELS), "with 3 labels; they must be"),
        ((IMAGES.flatten(1), LABELS, IMAGES, LABELS), "must be .n, channels, height, width"),
        ((IMAGES, LABELS, IMAGES[..., :4], LABELS), "bring them to the same"),
        ((IMAGES, LABELS - 1, IMAGES, LABELS), "training labels must be classes from 0"),
        ((IMAGES, LABELS, IMAGES, LABELS + 1), "a class that the training images have not"),
        ((IMAGES[:0], LABELS[:0], IMAGES, LABELS), "with 0 labels"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(values, message):
    with pytest.raises(data.DataError, match=message):
        data.ImageData(*values)
