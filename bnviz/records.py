"""What a training yields. Knows no file and no network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bnviz.identities import Check


@dataclass(frozen=True)
class Metrics:
    """Loss and accuracy at a step. `split` is "train" (loss: mean of the minibatches since the
    previous train record; accuracy is not measured) or "test" (the whole test set, BN with running
    statistics)."""

    step: int
    split: str
    loss: float
    accuracy: float | None
    learning_rate: float
    wall_time_s: float


@dataclass(frozen=True)
class Percentiles:
    """Distribution of the pre-activation of every unit of a layer at a step."""

    step: int
    layer: str
    mean: npt.NDArray[np.floating]  # (units,)
    std: npt.NDArray[np.floating]  # (units,)
    grid: npt.NDArray[np.floating]  # (units, len(GRID))


@dataclass(frozen=True)
class Progress:
    """Nothing new but the step: a sign of life, at least every PROGRESS_INTERVAL_S.

    `complete`: the records of all steps before this one have come, and the next update follows.
    """

    step: int
    complete: bool = True


@dataclass(frozen=True)
class Diverged:
    """The last record of a run whose loss or parameters stopped being finite numbers.

    `step` counts the updates completed when it happened: the loss computed there, or the
    parameters that the update led to, are not finite.
    """

    step: int
    reason: str


Record = Metrics | Percentiles | Check | Progress | Diverged
