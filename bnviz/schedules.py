"""The learning rate over the steps of a run."""

from __future__ import annotations

import math

from bnviz.settings import OptimizerConfig


def factor(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """What the learning rate is multiplied by in the update after `step` completed ones.

    Args:
        steps: of the whole run.
    """
    warm = min(1.0, (step + 1) / (optimizer.warmup_steps + 1))
    intervals = step / optimizer.decay_steps
    match optimizer.schedule:
        case "exponential":
            return warm * float(optimizer.decay_factor**intervals)
        case "step":
            return warm * float(optimizer.decay_factor ** math.floor(intervals))
        case "cosine":
            return warm * (1 + math.cos(math.pi * step / steps)) / 2
    return warm


def is_constant(optimizer: OptimizerConfig) -> bool:
    return optimizer.schedule == "constant" and not optimizer.warmup_steps
