"""How far the distribution of each unit's pre-activation moves, from its stored percentiles.

The percentiles stand for the whole distribution: between them the quantile function is taken to be
linear. In what follows, `grid` has shape (records, units, percentages), in units of the
pre-activation and ascending along its last axis; `percentages` names that axis. Results have shape
(records, units). They are NaN where a percentile they need is not finite (a diverging run).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SPREAD = (15, 85)
"""The paper's (Figure 1 b, c): for a Gaussian about one sigma to each side of the median."""

_BOUND = math.atanh(math.sqrt(0.9))
"""Where the derivative of tanh, 1 - tanh(x)^2, is 1/10 of its maximum, 1: x = 1.818."""

ACTIVE_RANGE = {
    "sigmoid": (-2 * _BOUND, 2 * _BOUND),  # s(x) = (1 + tanh(x / 2)) / 2, so s (1 - s) = 0.025
    "tanh": (-_BOUND, _BOUND),
    "relu": (0.0, math.inf),
    "leaky_relu": (0.0, math.inf),  # below 0 the derivative is 0.01
    "elu": (math.log(0.1), math.inf),  # below 0 the derivative is e^x
}
"""Pre-activations at which the derivative of a nonlinearity is at least 1/10 of its maximum.
Elsewhere it is saturated: hardly any gradient passes. The ends count as saturated, for the sake of
ReLU, whose derivative at 0 is taken as 0 (as PyTorch does)."""


def median_shift(grid: npt.ArrayLike, percentages: Sequence[float]) -> Floats:
    """p50 minus p50 of the first record.

    Raises:
        ValueError: percentage 50 is not stored.
    """
    return _since_first(_column(grid, percentages, 50))


def spread_change(grid: npt.ArrayLike, percentages: Sequence[float]) -> Floats:
    """p85 - p15 minus that of the first record.

    A difference and not a ratio, because it stays finite for a unit that begins or ends constant.

    Raises:
        ValueError: percentage 15 or 85 is not stored.
    """
    low, high = (_column(grid, percentages, percentage) for percentage in SPREAD)
    return _since_first(high - low)


def wasserstein(a: npt.ArrayLike, b: npt.ArrayLike, percentages: Sequence[float]) -> Floats:
    """Wasserstein-1 distance of distributions: how far the mass moves on average.

    In one dimension it is the integral over u in [0, 1] of |Q_a(u) - Q_b(u)|, with quantile
    functions Q (Vallender 1974); exact for the piecewise linear ones. A shift of the whole
    distribution by c has distance |c|.

    Args:
        a, b: percentiles, shapes (..., percentages) that broadcast.

    Returns:
        shape (...), in units of the pre-activation.

    Raises:
        ValueError: percentages that do not ascend from 0 to 100, or are not those of the arrays.
    """
    a, b = _finite(a, percentages), _finite(b, percentages)
    difference = a - b
    left, right = np.abs(difference[..., :-1]), np.abs(difference[..., 1:])
    negative = difference < 0
    crossing = negative[..., :-1] != negative[..., 1:]
    # Where the difference passes through 0, two triangles and not one trapezoid.
    excess = np.divide(left * right, left + right, out=np.zeros_like(left), where=crossing)
    return _integral((left + right) / 2 - excess, percentages)


def distance_from_first(grid: npt.ArrayLike, percentages: Sequence[float]) -> Floats:
    """Wasserstein-1 distance of each record from the first. Raises like `wasserstein`."""
    values = _finite(grid, percentages)
    return wasserstein(values, values[:1], percentages)


def distance_from_previous(grid: npt.ArrayLike, percentages: Sequence[float]) -> Floats:
    """Wasserstein-1 distance of each record from the one before; NaN for the first.

    Raises like `wasserstein`.
    """
    values = _finite(grid, percentages)
    distance = np.full(values.shape[:2], np.nan)
    distance[1:] = wasserstein(values[1:], values[:-1], percentages)
    return distance


def saturated_fraction(
    grid: npt.ArrayLike, percentages: Sequence[float], nonlinearity: str
) -> Floats:
    """Estimated share of examples outside ACTIVE_RANGE, from 0 to 1.

    Raises:
        ValueError: like `wasserstein`, or an unknown nonlinearity.
    """
    low, high = _active_range(nonlinearity)
    values = _finite(grid, percentages)
    mirrored = -values[..., ::-1], [100 - percentage for percentage in reversed(percentages)]
    share = _share_up_to(low, values, percentages) + _share_up_to(-high, *mirrored)
    return np.where(np.isnan(values).any(axis=-1), np.nan, share)


def dead(
    grid: npt.ArrayLike, percentages: Sequence[float], nonlinearity: str
) -> npt.NDArray[np.bool_]:
    """Whether all examples are saturated on the same side; for ReLU, whether p100 <= 0.

    Such a unit gives the same output whatever its input, and gets (almost) no gradient. False where
    a percentile is not finite.

    Raises:
        ValueError: percentage 0 or 100 is not stored, or an unknown nonlinearity.
    """
    low, high = _active_range(nonlinearity)
    smallest, largest = (_column(grid, percentages, percentage) for percentage in (0, 100))
    return (largest <= low) | (smallest >= high)


class Measure(NamedTuple):
    """What can be shown of the drift of units.

    Attributes:
        label: with the unit, for axes.
        explanation: one sentence.
        values: of grid, percentages and the name of the nonlinearity.
    """

    label: str
    explanation: str
    values: Callable[[npt.ArrayLike, Sequence[float], str], Floats]


MEASURES = {
    "median_shift": Measure(
        "shift of the median (pre-activation)",
        "How far the median lies from where it was in the first record.",
        lambda grid, percentages, _: median_shift(grid, percentages),
    ),
    "spread_change": Measure(
        "change of the spread, p85 - p15 (pre-activation)",
        "How much wider (above 0) or narrower (below 0) the distribution is than in the first "
        "record, between the 15th and the 85th percentile.",
        lambda grid, percentages, _: spread_change(grid, percentages),
    ),
    "distance_from_first": Measure(
        "distance from the first record (pre-activation)",
        "How far examples would have to move, on average, to turn the first record's distribution "
        "into this one (Wasserstein-1).",
        lambda grid, percentages, _: distance_from_first(grid, percentages),
    ),
    "distance_from_previous": Measure(
        "distance from the previous record (pre-activation)",
        "How far examples would have to move, on average, to turn the previous record's "
        "distribution into this one (Wasserstein-1); it also grows where records lie further "
        "apart.",
        lambda grid, percentages, _: distance_from_previous(grid, percentages),
    ),
    "saturated_fraction": Measure(
        "saturated (share of examples)",
        "For which share of the examples the derivative of the nonlinearity is below a tenth of "
        "its maximum.",
        saturated_fraction,
    ),
    "dead": Measure(
        "dead (1: yes, 0: no)",
        "Whether all examples are saturated on the same side, so that the unit says the same "
        "whatever its input.",
        lambda grid, percentages, nonlinearity: np.where(
            np.isfinite(grid).all(axis=-1), dead(grid, percentages, nonlinearity), np.nan
        ),
    ),
}


def _finite(grid: npt.ArrayLike, percentages: Sequence[float]) -> Floats:
    """Infinities become NaN, which goes through arithmetic without a warning (inf - inf does not).

    Raises:
        ValueError: the last axis is not that of the percentages.
    """
    values = np.asarray(grid, dtype=np.float64)
    if values.shape[-1] != len(percentages):
        raise ValueError(f"{values.shape[-1]} percentiles, but {len(percentages)} percentages")
    return np.where(np.isfinite(values), values, np.nan)


def _column(grid: npt.ArrayLike, percentages: Sequence[float], percentage: int) -> Floats:
    if percentage not in percentages:
        raise ValueError(f"needs percentage {percentage}, got {list(percentages)}")
    return _finite(grid, percentages)[..., list(percentages).index(percentage)]


def _since_first(values: Floats) -> Floats:
    return values - values[:1]


def _integral(mean_heights: Floats, percentages: Sequence[float]) -> Floats:
    """Over u in [0, 1], from the mean height between each two percentages."""
    if percentages[0] != 0 or percentages[-1] != 100 or (np.diff(percentages) <= 0).any():
        raise ValueError(f"percentages must ascend from 0 to 100, got {list(percentages)}")
    # Percent are summed and then divided: whole numbers, so that all is 1 and not nearly 1.
    return np.asarray((mean_heights * np.diff(percentages)).sum(axis=-1) / 100)


def _share_up_to(bound: float, values: Floats, percentages: Sequence[float]) -> Floats:
    """Share of the distribution at or below the bound."""
    low, high = values[..., :-1], values[..., 1:]
    ties = (low <= bound).astype(np.float64)  # equal percentiles are on one side as a whole
    rise = high - low
    part = np.divide(np.clip(bound, low, high) - low, rise, out=ties, where=rise > 0)
    return _integral(part, percentages)


def _active_range(nonlinearity: str) -> tuple[float, float]:
    if nonlinearity not in ACTIVE_RANGE:
        raise ValueError(f"unknown nonlinearity {nonlinearity!r}; known: {', '.join(ACTIVE_RANGE)}")
    return ACTIVE_RANGE[nonlinearity]
