from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from bnviz import data, jobs, processes, queue
from bnviz.config import RunConfig
from bnviz.store import Run, list_run_ids, open_run

torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)  # however busy it is
settings.load_profile("any machine")


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
    """An empty folder for runs; what still trains in it at the end of the test is killed."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("BNVIZ_ROOT", str(folder))
    yield folder
    stop_all(folder)


def stop_all(folder: Path) -> None:
    """Leave no process behind: those that wait are held back, the others killed."""
    runs = [open_run(folder / run_id) for run_id in list_run_ids(folder)]

    def kill(run: Run) -> None:
        if run.status.pid != os.getpid():
            processes.kill(run.status)

    for act in (jobs.pause, kill):
        for run in runs:
            with contextlib.suppress(RuntimeError):  # it has ended, or a test damaged it
                if not (act is jobs.pause and processes.has_process(run.status)):
                    act(run)
    for guard in queue._guards:
        guard.wait(timeout=30)


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
