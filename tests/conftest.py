from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bnviz import data, jobs
from bnviz.config import RunConfig
from bnviz.store import Run, open_run

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mnist() -> data.ImageData:
    """All of MNIST, binary."""
    return data.load_mnist()


@pytest.fixture(scope="session")
def digits(mnist: data.ImageData) -> data.ImageData:
    """A part of MNIST, for tests that train a few steps: 600 training and 200 test digits."""
    return data.ImageData(
        mnist.train_images[:600],
        mnist.train_labels[:600],
        mnist.test_images[:200],
        mnist.test_labels[:200],
    )


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for runs; what still trains in it at the end of the test is cancelled."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("BNVIZ_ROOT", str(folder))
    yield folder
    cancel_all(folder)


def cancel_all(folder: Path) -> None:
    from bnviz.status import UNFINISHED
    from bnviz.store import list_run_ids

    for run_id in list_run_ids(folder):
        run = open_run(folder / run_id)
        try:
            if jobs.true_status(run).state in UNFINISHED:
                jobs.cancel(run)
                jobs.wait_until_finished(run, timeout_s=20)
        except RuntimeError:
            continue  # a run that a test damaged on purpose
    for worker in jobs._workers:
        worker.wait(timeout=30)


def small(**overrides: object) -> RunConfig:
    """A run of a second or two; overrides by dotted path, with __ for the dot."""
    settings: dict[str, object] = {
        "training.steps": 200,
        "training.evaluations": 4,
        "trace.records": 10,
        "training.device": "cpu",
    }
    settings |= {path.replace("__", "."): value for path, value in overrides.items()}
    return RunConfig().replace(settings)


def submit_and_wait(config: RunConfig, root: Path, name: str = "test") -> Run:
    run = open_run(root / jobs.submit(config, root, name))
    jobs.wait_until_finished(run, timeout_s=120)
    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
