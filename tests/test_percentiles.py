import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnviz.percentiles import percentiles, typical_unit
from bnviz.schema import GRID


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_equal_numpy_percentile_on_the_same_values(values):
    expected = np.percentile(values.astype(np.float64), GRID, axis=1).T
    np.testing.assert_allclose(percentiles(values, GRID), expected, rtol=1e-12, atol=1e-9)


@given(st.integers(1, 200), st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_any_percentage_and_sample_size(examples, grid):
    values = np.random.default_rng(examples).normal(size=(3, examples)).astype(np.float32)
    expected = np.percentile(values.astype(np.float64), grid, axis=1).T
    np.testing.assert_allclose(percentiles(values, grid), expected, rtol=1e-12, atol=1e-12)


def test_the_input_is_left_as_it_was(rng):
    values = rng.normal(size=(4, 9))
    before = values.copy()
    percentiles(values, GRID)
    np.testing.assert_array_equal(values, before)


def test_a_unit_with_nan_has_no_percentiles_and_the_others_do():
    values = np.array([[1.0, np.nan, 2.0], [1.0, 2.0, 3.0]])
    result = percentiles(values, [0, 50, 100])
    assert np.isnan(result[0]).all()
    np.testing.assert_array_equal(result[1], [1, 2, 3])


def test_infinite_values_are_ordered_like_any_other():
    result = percentiles(np.array([[-np.inf, 0.0, 1.0, np.inf, np.inf]]), [0, 25, 50, 75, 100])
    np.testing.assert_array_equal(result[0], [-np.inf, 0, 1, np.inf, np.inf])


def test_no_examples_and_impossible_percentages_are_refused():
    with pytest.raises(ValueError, match="at least one example"):
        percentiles(np.empty((3, 0)), [50])
    with pytest.raises(ValueError, match="in \\[0, 100\\]"):
        percentiles(np.ones((3, 2)), [101])


def test_typical_unit_has_the_median_spread():
    assert typical_unit(np.array([5.0, 1.0, 3.0])) == 2
    assert typical_unit(np.array([4.0, 1.0, 3.0, 2.0])) == 3  # the lower of the middle two
    assert typical_unit(np.array([1.0, 1.0, 1.0])) == 1
    with pytest.raises(ValueError, match="without units"):
        typical_unit(np.array([]))
