"""What a plot shows of a long trace."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tsdownsample import NaNMinMaxLTTBDownsampler

PLOT_LIMIT = 2_000
"""Points of a line. More than a screen has columns of pixels, few enough to redraw each second."""


def downsample(
    x: npt.ArrayLike, y: npt.ArrayLike, limit: int = PLOT_LIMIT
) -> npt.NDArray[np.int64]:
    """Indices, ascending, of at most `limit` points that look like the whole line.

    The first and the last point, the smallest and the largest value and (where there is one) a
    NaN are always kept; the rest is chosen by MinMaxLTTB (Van Der Donckt et al. 2023). All indices
    come back where the line is short enough.

    Args:
        x: ascending positions, shape (n,).
        y: values, shape (n,).
        limit: at least 10.
    """
    positions = np.ascontiguousarray(x, dtype=np.float64)
    values = np.ascontiguousarray(y, dtype=np.float64)
    n = len(values)
    if n <= limit:
        return np.arange(n)
    keep = [0, n - 1]
    missing = np.isnan(values)
    if missing.any():
        keep.append(int(np.argmax(missing)))
    if not missing.all():
        keep += [int(np.nanargmin(values)), int(np.nanargmax(values))]
    chosen = NaNMinMaxLTTBDownsampler().downsample(positions, values, n_out=limit - len(keep))
    return np.union1d(chosen.astype(np.int64), keep)
