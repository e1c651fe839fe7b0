"""Where a step of training spends its time: `python benchmarks/profile_step.py`.

The paper's network with BN, updated by autograd and written out, under torch's profiler, which
adds a microsecond or two to each operation.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Report
from bnviz import data
from bnviz.config import RunConfig
from bnviz.steps import AutogradStep
from bnviz.trainer import Trainer

STEPS = 1_000
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::linear"),
    "batch normalization": ("batch_norm",),
    "sigmoid": ("sigmoid",),
    "softmax and loss": ("softmax", "nll_loss", "cross_entropy"),
    "optimizer": ("_fused_sgd", "Optimizer"),
    "the minibatch": ("index",),
}
"""What belongs together, by what is in the names of torch's operations."""


def seconds_by_part(trainer: Trainer) -> dict[str, float]:
    """Microseconds of a step in each part, by operations' own time."""
    batches = [trainer.batches[step] for step in range(STEPS)]
    for batch in batches[:100]:
        trainer.update(batch, None)
    began = time.perf_counter()
    for batch in batches:
        trainer.update(batch, None)
    whole = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for batch in batches:
            trainer.update(batch, None)
    parts = dict.fromkeys([*PARTS, "other operations"], 0.0)
    for event in profiled.key_averages():
        of = [part for part, names in PARTS.items() if any(name in event.key for name in names)]
        parts[of[0] if of else "other operations"] += event.self_cpu_time_total / STEPS
    return {**parts, "a step without the profiler": whole / STEPS * 1e6}


def main() -> None:
    torch.set_num_threads(1)
    digits = data.load_mnist()
    config = RunConfig().replace({"model.normalization": "batch", "training.steps": 10 * STEPS})
    by_autograd, written_out = Trainer(config, digits), Trainer(config, digits)
    by_autograd.train_step = AutogradStep(by_autograd.model, by_autograd.optimizer)
    before, after = seconds_by_part(by_autograd), seconds_by_part(written_out)
    Report("profile").table(
        "A step, µs",
        ("part", "by autograd", "written out"),
        [(part, round(before[part]), round(after[part])) for part in before],
    )


if __name__ == "__main__":
    main()
