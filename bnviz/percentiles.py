"""Exact percentiles of the units of a layer (pure arithmetic on arrays, no I/O)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

LONG = 1_000
"""Values of a row that are summed pairwise. Few values are so in half the time one after the other,
and as exactly as float32 is stored."""


def percentiles(values: Array, grid: Sequence[float]) -> npt.NDArray[np.float64]:
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
    return _of_ordered(np.sort(values, axis=-1), grid)


def summarize(values: Array, grid: Sequence[float]) -> tuple[Array, Array, npt.NDArray[np.float64]]:
    """Mean, standard deviation (divisor n) and percentiles of every unit: (units,), (units,),
    (units, len(grid)). Overwrites `values`, (units, examples).

    Raises:
        ValueError: as `percentiles`.
    """
    values.sort(axis=-1)
    grid_values = _of_ordered(values, grid)
    examples = values.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite value has no mean: NaN
        mean = _sums(values) / examples
        values -= mean[:, None]
        std = np.sqrt(_sums(np.square(values, out=values)) / examples)
    return mean, std, grid_values


def _sums(values: Array) -> Array:
    """Of each row, (rows,); the same for a row whatever the others are."""
    if values.shape[1] > LONG:
        return np.add.reduce(values, axis=1)
    sums: Array = np.einsum("ij->i", values)
    return sums


def _of_ordered(ordered: Array, grid: Sequence[float]) -> npt.NDArray[np.float64]:
    """Percentiles of values that ascend along the last axis, NaN last."""
    examples = ordered.shape[1]
    if examples == 0:
        raise ValueError("percentiles need at least one example per unit")
    wanted = np.asarray(grid, dtype=np.float64)
    if not ((wanted >= 0) & (wanted <= 100)).all():
        raise ValueError(f"percentages must be in [0, 100], got {list(grid)}")
    position = wanted / 100 * (examples - 1)  # (grid,) fractional index of each percentile
    below = np.floor(position).astype(np.intp)
    above = np.minimum(below + 1, examples - 1)
    ends = ordered.take(np.concatenate([below, above]), axis=1).astype(np.float64)
    low, high = ends[:, : len(wanted)], ends[:, len(wanted) :]  # (units, grid) each
    with np.errstate(invalid="ignore"):
        result: npt.NDArray[np.float64] = low + (high - low) * (position - below)
    # Where both neighbours are infinite there is nothing to interpolate, and inf - inf is NaN.
    if np.isnan(result).any():
        result = np.where((position == below) | (low == high), low, result)
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
