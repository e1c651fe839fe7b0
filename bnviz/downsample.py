"""What a plot shows of a long trace."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tsdownsample import NaNMinMaxLTTBDownsampler

PLOT_LIMIT = 2_000
"""Points of a line. More than a screen has columns of pixels, few enough to redraw each second."""

OUTSIDE_LIMIT = 200
"""Points of a line outside of the part that is looked at: what a pan or a zoom out shows until the
others are there."""

View = tuple[float, float]
"""The part of an axis that is looked at, from and to."""


def downsample(
    x: npt.ArrayLike, y: npt.ArrayLike, limit: int = PLOT_LIMIT, view: View | None = None
) -> npt.NDArray[np.int64]:
    """Indices, ascending, of points that look like the whole line, at most `limit` of them.

    The first and the last point, the smallest and the largest value and (where there is one) a
    NaN are always kept; the rest is chosen by MinMaxLTTB (Van Der Donckt et al. 2023). All indices
    come back where the line is short enough.

    Args:
        x: ascending positions, shape (n,).
        y: values, shape (n,).
        limit: at least 10.
        view: where given, the limit and all of the above are for the points in there and the next
            on either side; at most OUTSIDE_LIMIT of the whole line are added.
    """
    positions = np.ascontiguousarray(x, dtype=np.float64)
    values = np.ascontiguousarray(y, dtype=np.float64)
    n = len(values)
    if n <= limit:
        return np.arange(n)
    if view is not None:
        inside = in_view(positions, view)
        chosen = inside.start + downsample(positions[inside], values[inside], limit)
        return np.union1d(chosen, downsample(positions, values, OUTSIDE_LIMIT))
    keep = [0, n - 1]
    missing = np.isnan(values)
    if missing.any():
        keep.append(int(np.argmax(missing)))
    if not missing.all():
        keep += [int(np.nanargmin(values)), int(np.nanargmax(values))]
    chosen = NaNMinMaxLTTBDownsampler().downsample(positions, values, n_out=limit - len(keep))
    return np.union1d(chosen.astype(np.int64), keep)


def in_view(x: npt.ArrayLike, view: View) -> slice:
    """The points within a view and, where there is one, the next on either side: their lines
    enter it."""
    positions = np.asarray(x, dtype=np.float64)
    start = int(np.searchsorted(positions, view[0], side="left"))
    stop = int(np.searchsorted(positions, view[1], side="right"))
    return slice(max(0, start - 1), min(len(positions), stop + 1))
