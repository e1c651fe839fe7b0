"""Figures 1 to 4 of Ioffe & Szegedy (2015, arXiv:1502.03167v3): curves digitised from the vector
graphics, tables as printed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

CITATION = (
    "curves digitised from the figures of Ioffe & Szegedy, Batch Normalization, 2015, "
    "arXiv:1502.03167v3"
)

STEPS = 50_000
"""Length of the paper's MNIST runs. Panels (b) and (c) have no x ticks; that their axis spans these
steps is an assumption."""

COMPARED_STEPS = (4_000, 6_000, 8_000, 10_000, 12_000, 16_000, 20_000, 30_000, 40_000, 44_000)
"""Where our accuracy is compared with the paper's: its curves are straight lines between knots
about 4,000 steps apart, and the one without BN ends at 44,000."""

_FOLDER = Path(__file__).resolve().parent / "assets" / "paper"
SERIES = {"none": "without_bn", "batch": "with_bn"}
"""Normalizations of which the paper has curves."""

_PERCENTILE_FIGURES = {"none": "fig1b_without_bn", "batch": "fig1c_with_bn"}


class System(NamedTuple):
    """A row of the paper's Figure 3. None: never reached, or not stated."""

    steps_to_72_2: float | None
    """Updates until the accuracy of 72.2%, which is Inception's best."""
    best_accuracy: float | None
    outcome: str = ""
    """In words, where there is no curve."""


FIGURE_3 = {
    "Inception": System(31.0e6, 0.722),
    "BN-Baseline": System(13.3e6, 0.727),
    "BN-x5": System(2.1e6, 0.730),
    "BN-x30": System(2.7e6, 0.748),
    "BN-x5-Sigmoid": System(None, 0.698),
    "Inception at 5 × the rate": System(None, None, "parameters reach machine infinity"),
    "Inception-Sigmoid": System(None, None, "never better than chance"),
}
"""ImageNet, validation, single crop; the last two from the text of Section 4.2.2."""

BASELINE = "Inception"

FIGURE_4 = pd.DataFrame(
    [
        ("GoogLeNet ensemble", 7, "144", None, 0.0667),
        ("Deep Image low-res", 1, "–", None, 0.0796),
        ("Deep Image high-res", 1, "–", 0.2488, 0.0742),
        ("Deep Image ensemble", None, "–", None, 0.0598),
        ("BN-Inception single crop", 1, "1", 0.252, 0.0782),
        ("BN-Inception multicrop", 1, "144", 0.2199, 0.0582),
        ("BN-Inception ensemble", 6, "144", 0.201, 0.049),
    ],
    columns=["model", "networks", "crops", "top1", "top5"],
).astype({"networks": "Int64"})
"""Errors on the 50,000 validation images of ImageNet."""


@cache
def _points(figure: int = 1) -> pd.DataFrame:
    return pd.read_csv(_FOLDER / f"figure{figure}_digitised.csv")


def digitised(figure: int = 1) -> pd.DataFrame:
    """All points of Figure 1 or 2: figure, series, x, y. In Figure 1 (b) and (c) x is the part of
    the axis."""
    return _points(figure).copy()


@cache
def imagenet_accuracy(system: str) -> pd.DataFrame:
    """The curve of a system of Figure 2: columns step, accuracy; no rows for one that has none. Not
    to be changed."""
    points = _points(2)
    rows = points["series"] == system
    return points.loc[rows, ["x", "y"]].set_axis(["step", "accuracy"], axis=1).sort_values("step")


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
