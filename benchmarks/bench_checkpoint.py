"""What checkpoints cost a training: `python benchmarks/bench_checkpoint.py`.

Trains the preset `figure1` with BN in this process, as a worker does, with checkpoints at the usual
interval and without any, in turn, and prints the time of one save and the ratio of the two.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Report, ratio, spread
from bnviz import checkpoint, data, worker
from bnviz.presets import find_preset

STEPS = 25_000
TURNS = 3


def main() -> None:
    config = find_preset("figure1").runs["with-bn"].replace({"training.steps": STEPS})
    digits = data.load_mnist()
    saves: list[float] = []
    save = checkpoint.save

    def timed_save(path: Path, state: dict[str, Any]) -> None:
        began = time.perf_counter()
        save(path, state)
        saves.append(time.perf_counter() - began)

    checkpoint.save = timed_save
    interval = worker.CHECKPOINT_INTERVAL_S
    seconds: dict[float, list[float]] = {interval: [], 1e9: []}
    for _ in range(TURNS):
        for wait, times in seconds.items():
            worker.CHECKPOINT_INTERVAL_S = wait
            with tempfile.TemporaryDirectory() as root:
                run = worker.run_here(config, Path(root), train_on=digits)
                times.append(float(run.metrics()["wall_time_s"].iloc[-1]))
    size = sum(tensor.numel() * 4 for tensor in _last_state(config, digits).values())
    with_saves, without = (np.array(times) for times in seconds.values())
    report = Report("checkpoint")
    report.table(
        "Checkpoints",
        ("what", "value"),
        [
            ("a save, ms (quartiles)", spread(np.array(saves) * 1000, 1)),
            ("MB of parameters", size / 1e6),
            (f"s for {STEPS:,} steps, one each {interval:.0f} s", spread(with_saves, 2)),
            (f"s for {STEPS:,} steps, the last one alone", spread(without, 2)),
            ("ratio", ratio(with_saves, without)),
        ],
    )


def _last_state(config: Any, digits: data.ImageData) -> dict[str, Any]:
    from bnviz.trainer import Trainer

    model: dict[str, Any] = Trainer(config, digits).model.state_dict()
    return model


if __name__ == "__main__":
    main()
