import gzip
import hashlib
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from bnviz import data


def test_all_of_mnist_is_there(mnist):
    assert mnist.train_images.shape == (60_000, 784)
    assert mnist.test_images.shape == (10_000, 784)
    # Digits of each class in the original training set.
    assert torch.bincount(mnist.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip


def test_pixels_are_those_of_the_embedded_file(mnist):
    raw = gzip.decompress((data.ASSETS / "t10k-images-idx3-ubyte.gz").read_bytes())
    grey = np.frombuffer(raw, np.uint8, offset=16).reshape(10_000, 784)
    np.testing.assert_array_equal(mnist.test_images.numpy(), grey > 127)
    shades = data.load_mnist("grey").test_images.numpy()
    np.testing.assert_allclose(shades, grey / 255, rtol=1e-6)


def whole(cache):
    return {
        name: hashlib.md5((cache / "MNIST" / "raw" / name).read_bytes()).hexdigest()
        for name in data.MD5
    } == data.MD5


def test_a_damaged_or_interrupted_cache_repairs_itself(tmp_path):
    data.expand(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").write_bytes(b"half a fi")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    data.expand(tmp_path)
    assert whole(tmp_path)


def test_two_processes_may_expand_at_the_same_moment(tmp_path):
    code = "import sys, pathlib; from bnviz import data; data.expand(pathlib.Path(sys.argv[1]))"
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert whole(tmp_path)
    assert sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir()) == sorted(data.MD5)


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataError, match="set BNVIZ_CACHE"):
        data.expand(tmp_path / "file")


def test_a_damaged_embedded_file_is_named(tmp_path, monkeypatch):
    shutil.copytree(data.ASSETS, tmp_path / "assets")
    monkeypatch.setattr(data, "ASSETS", tmp_path / "assets")
    (tmp_path / "assets" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(data.DataError, match=r"t10k-labels-idx1-ubyte.gz is damaged"):
        data.expand(tmp_path / "cache")


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
