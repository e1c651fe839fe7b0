"""Figure 1 of Ioffe & Szegedy (2015), digitised from the vector graphics of arXiv:1502.03167v3."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

CITATION = (
    "curves digitised from Figure 1 of Ioffe & Szegedy, Batch Normalization, 2015, "
    "arXiv:1502.03167v3"
)

STEPS = 50_000
"""Length of the paper's MNIST runs. Panels (b) and (c) have no x ticks; that their axis spans these
steps is an assumption."""

COMPARED_STEPS = (4_000, 6_000, 8_000, 10_000, 12_000, 16_000, 20_000, 30_000, 40_000, 44_000)
"""Where our accuracy is compared with the paper's: its curves are straight lines between knots
about 4,000 steps apart, and the one without BN ends at 44,000."""

_FILE = Path(__file__).resolve().parent / "assets" / "paper" / "figure1_digitised.csv"
SERIES = {"none": "without_bn", "batch": "with_bn"}
"""Normalizations of which the paper has curves."""

_PERCENTILE_FIGURES = {"none": "fig1b_without_bn", "batch": "fig1c_with_bn"}


@cache
def _points() -> pd.DataFrame:
    return pd.read_csv(_FILE)


def digitised() -> pd.DataFrame:
    """All points of the figure: figure, series, x, y. In panels (b) and (c) x is the part of the
    axis."""
    return _points().copy()


@cache
def accuracy(normalization: str) -> pd.DataFrame:
    """The curve of Figure 1(a) for "none" or "batch": columns step, accuracy. Not to be changed."""
    points = _points()
    rows = (points["figure"] == "fig1a") & (points["series"] == SERIES[normalization])
    return points.loc[rows, ["x", "y"]].set_axis(["step", "accuracy"], axis=1).sort_values("step")


@cache
def percentile(normalization: str, percentage: int) -> pd.DataFrame:
    """A curve of Figure 1(b) ("none") or (c) ("batch"), percentage 15, 50 or 85: step, value. Not
    to be changed."""
    points = _points()
    rows = (points["figure"] == _PERCENTILE_FIGURES[normalization]) & (
        points["series"] == f"p{percentage}"
    )
    curve = points.loc[rows, ["x", "y"]].set_axis(["step", "value"], axis=1)
    return curve.assign(step=curve["step"] * STEPS).sort_values("step")


def accuracy_at(normalization: str) -> npt.NDArray[np.float64]:
    """The paper's accuracy at COMPARED_STEPS."""
    curve = accuracy(normalization)
    return np.interp(COMPARED_STEPS, curve["step"], curve["accuracy"])
