import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnviz.downsample import OUTSIDE_LIMIT, downsample, in_view

values_with_nan = hnp.arrays(
    np.float64, st.integers(1, 400), elements=st.floats(-1e9, 1e9) | st.just(np.nan)
)


@given(values_with_nan, st.integers(10, 120))
def test_keeps_ends_and_extremes_within_the_limit(values, limit):
    kept = downsample(np.arange(len(values)), values, limit)
    assert len(kept) <= max(limit, 10)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    if not np.isnan(values).all():
        assert np.nanmin(values) == np.nanmin(values[kept])
        assert np.nanmax(values) == np.nanmax(values[kept])
    assert np.isnan(values[kept]).any() == np.isnan(values).any()


@given(values_with_nan, st.integers(10, 120), st.floats(-10, 410), st.floats(0, 200))
def test_all_points_looked_at_are_kept_where_they_are_few(values, limit, start, width):
    x, view = np.arange(len(values)), (start, start + width)
    kept = downsample(x, values, limit, view)
    inside = x[(x >= view[0]) & (x <= view[1])]
    assert {0, len(values) - 1} <= set(kept)
    assert (np.diff(kept) > 0).all()
    if len(inside) + 2 <= limit:  # with one neighbour on each side
        assert set(inside) <= set(kept)
    if len(inside):
        shown = values[kept[(kept >= inside[0]) & (kept <= inside[-1])]]
        seen = values[in_view(x, view)]
        if not np.isnan(seen).all():
            extremes = {np.nanmin(seen), np.nanmax(seen)}
            assert extremes <= set(values[kept])
        assert len(shown) <= max(limit, 10) + OUTSIDE_LIMIT


def test_a_short_line_is_shown_whole():
    np.testing.assert_array_equal(downsample(np.arange(50), np.ones(50), 50), np.arange(50))
    assert len(downsample([], [])) == 0


def test_a_single_spike_among_a_million_points_is_seen():
    values = np.zeros(1_000_000)
    values[123_456] = 5.0
    kept = downsample(np.arange(len(values)), values, 2_000)
    assert 123_456 in kept
    assert len(kept) <= 2_000
