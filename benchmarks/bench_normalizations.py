"""What each normalization costs: seconds of training for 1,000 steps, MLP and CNN.

    python benchmarks/bench_normalizations.py

All train in turns in one process, so that what else the machine does falls on all of them. The
networks are those of the presets `normalizations-mlp` and `normalizations`; the accuracies that go
with them are in `bench_presets.py`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Report, in_turns, ratio, spread
from bnviz.data import load
from bnviz.presets import presets
from bnviz.settings import NORMALIZATIONS
from bnviz.trainer import Trainer

ROUNDS, STEPS = 15, {"normalizations-mlp": 60, "normalizations": 15}


def main() -> None:
    torch.set_num_threads(1)
    report = Report("normalizations")
    for name, steps in STEPS.items():
        configs = list(presets()[name].runs.values())
        data = load(configs[0].data)
        ways = {
            NORMALIZATIONS[config.model.normalization]: partial(run, Trainer(config, data), steps)
            for config in configs
        }
        seconds = in_turns(ways, ROUNDS)
        plain = seconds[NORMALIZATIONS["none"]]
        report.table(
            f"{configs[0].model.kind.upper()}",
            ("normalization", "s / 1,000 steps (quartiles)", "÷ without"),
            [(n, spread(times * 1000, 2), ratio(times, plain)) for n, times in seconds.items()],
        )


def run(trainer: Trainer, steps: int) -> int:
    """So many updates."""
    for _ in range(steps):
        batch = trainer.batches[trainer.step]
        images, labels = trainer.data.train_images[batch], trainer.data.train_labels[batch]
        trainer.train_step(images, labels)
        trainer.step += 1
    return steps


if __name__ == "__main__":
    main()
