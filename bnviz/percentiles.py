"""Exact percentiles of the units of a layer (pure arithmetic on arrays, no I/O)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def percentiles(values: npt.NDArray[np.floating], grid: Sequence[float]) -> npt.NDArray[np.float64]:
    """Exact percentiles of every unit, by linear interpolation between order statistics.

    The definition is numpy.percentile's default (method 7 of Hyndman & Fan, 1996). A unit with
    a value that is not a number has no order, so all its percentiles are NaN.

    Args:
        values: the sample of each unit, shape (units, examples). Examples lie contiguously
            because sorting along contiguous rows is what makes this cheap.
        grid: the percentages wanted, each in [0, 100].

    Returns:
        shape (units, len(grid)).

    Raises:
        ValueError: no examples, or a percentage outside [0, 100].
    """
    examples = values.shape[1]
    if examples == 0:
        raise ValueError("percentiles need at least one example per unit")
    wanted = np.asarray(grid, dtype=np.float64)
    if not ((wanted >= 0) & (wanted <= 100)).all():
        raise ValueError(f"percentages must be in [0, 100], got {list(grid)}")

    ordered = np.sort(values, axis=-1)  # (units, examples); NaN sorts last
    position = wanted / 100 * (examples - 1)  # (grid,) fractional index of each percentile
    below = np.floor(position).astype(np.intp)
    above = np.minimum(below + 1, examples - 1)
    low = ordered[:, below].astype(np.float64)  # (units, grid)
    high = ordered[:, above].astype(np.float64)
    fraction = position - below
    # Where both neighbours are equal there is nothing to interpolate, and inf - inf would be NaN.
    with np.errstate(invalid="ignore"):
        result = np.where((fraction == 0) | (low == high), low, low + (high - low) * fraction)
    result[np.isnan(ordered[:, -1])] = np.nan
    return result


def typical_unit(spread: npt.NDArray[np.floating]) -> int:
    """The unit that stands for its layer: the one whose spread at step 0 is the layer's median.

    The rule looks at step 0 alone, so the choice is made before the outcome is known and never
    changes while a run grows. With an even number of units the lower of the two middle ones is
    taken; of equal spreads, the lowest unit number.

    Args:
        spread: p85 - p15 of each unit at step 0, shape (units,).

    Raises:
        ValueError: no units.
    """
    if len(spread) == 0:
        raise ValueError("a layer without units has no typical unit")
    order = np.argsort(spread, kind="stable")
    return int(order[(len(spread) - 1) // 2])
