"""What each normalization costs: seconds of training for 1,000 steps, MLP and CNN.

    python benchmarks/bench_normalizations.py

All train in turns in one process, so that what else the machine does falls on all of them. The
networks are those of the presets `normalizations-mlp` and `normalizations`; the accuracies that go
with them are in `bench_presets.py`.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnviz.data import load
from bnviz.presets import presets
from bnviz.settings import NORMALIZATIONS
from bnviz.training import Trainer

ROUNDS, STEPS = 15, {"normalizations-mlp": 60, "normalizations": 15}


def main() -> None:
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}\n")
    print("| network | normalization | s / 1,000 steps (quartiles) | ÷ without |")
    print("|---|---|---|---|")
    for name, steps in STEPS.items():
        configs = list(presets()[name].runs.values())
        data = load(configs[0].data)
        trainers = {c.model.normalization: Trainer(c, data) for c in configs}
        for trainer in trainers.values():
            run(trainer, steps)  # warm caches
        seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
        for _ in range(ROUNDS):
            for kind, trainer in trainers.items():
                seconds[kind].append(run(trainer, steps))
        plain = np.array(seconds["none"])
        for kind, times in seconds.items():
            low, middle, high = np.percentile(np.array(times) / steps * 1000, [25, 50, 75])
            ratio = np.median(np.array(times) / plain)
            network = configs[0].model.kind.upper()
            label = NORMALIZATIONS[kind]
            print(f"| {network} | {label} | {middle:.2f} ({low:.2f} to {high:.2f}) | {ratio:.2f} |")


def run(trainer: Trainer, steps: int) -> float:
    """Seconds of so many updates."""
    began = time.perf_counter()
    for _ in range(steps):
        batch = trainer.batches[trainer.step]
        images, labels = trainer.data.train_images[batch], trainer.data.train_labels[batch]
        trainer.train_step(images, labels)
        trainer.step += 1
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
