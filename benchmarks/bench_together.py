"""What many runs cost as one program: `python benchmarks/bench_together.py [cpu|cuda] [STEPS]`.

The paper's MNIST network with BN, minibatches of 60, learning rates that differ; training alone,
without evaluations and records, in turns in one process. On a CPU one thread. With seeds that
differ each run has minibatches of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Report, in_turns, ratio, spread
from bnviz.config import RunConfig
from bnviz.data import ImageData, load
from bnviz.records import Progress
from bnviz.trainer import Trainer
from bnviz.training import Training

ROUNDS = 7


def main() -> None:
    torch.set_num_threads(1)
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    counts = (1, 2, 4, 8, 16, 32) if device == "cpu" else (1, 8, 32, 128)
    base = RunConfig().replace(
        {
            "training.device": device,
            "training.steps": 10_000_000,
            "training.evaluations": 1,
            "trace.records": 0,
        }
    )
    data = load(base.data)
    ways = {
        f"{runs}, {'own orders' if own else 'one order'}": program(base, data, runs, steps, own)
        for runs in counts
        for own in ((False, True) if runs > 1 else (False,))
    }
    seconds = in_turns(ways, ROUNDS)
    one = seconds["1, one order"]
    rows = []
    for name, times in seconds.items():
        runs = int(name.partition(",")[0])
        rows.append((name, spread(times * 1e6), ratio(times, one), ratio(one * runs, times)))
    Report(f"together-{device}").table(
        f"Runs as one program on {device}",
        (
            "runs, order of the data",
            "µs a step of all (quartiles)",
            "÷ one run",
            "one by one ÷ this",
        ),
        rows,
    )


def program(
    base: RunConfig, data: ImageData, runs: int, steps: int, own_orders: bool
) -> Callable[[], int]:
    """Trains so many steps of each of some runs, and returns how many."""
    trainers = [
        Trainer(
            base.replace(
                {"optimizer.learning_rate": 0.01 * (i + 1), "training.seed": i * own_orders}
            ),
            data,
        )
        for i in range(runs)
    ]
    stream = Training(trainers).records()

    def train() -> int:
        began = trainers[0].step
        for _, record in stream:
            if isinstance(record, Progress) and record.complete and record.step >= began + steps:
                break
        if trainers[0].device.type == "cuda":
            torch.cuda.synchronize()
        return trainers[0].step - began

    return train


if __name__ == "__main__":
    main()
