import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnviz import drift
from bnviz.percentiles import percentiles
from bnviz.schema import GRID

distributions = hnp.arrays(
    np.float64, len(GRID), elements=st.floats(-1e6, 1e6, width=32) | st.sampled_from([-1, 0, 1])
).map(np.sort)
gradients = {
    "sigmoid": lambda x: 0.25 / np.cosh(x / 2) ** 2,
    "tanh": lambda x: 1 / np.cosh(x) ** 2,
    "relu": lambda x: np.where(x > 0, 1.0, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, 1.0, 0.01),
    "elu": lambda x: np.where(x > 0, 1.0, np.exp(np.minimum(x, 0))),
}


def quantiles(stored, count=200_001):
    """The quantile function at the middles of `count` equal parts of [0, 1]."""
    return np.interp((np.arange(count) + 0.5) / count, np.array(GRID) / 100, stored)


def records(*stored):
    """One unit, a record for each distribution."""
    return np.array(stored, dtype=np.float64)[:, None, :]


def samples(rng, count=3, units=4):
    """Percentiles of normal samples that move and widen, (records, units, percentages)."""
    return np.stack(
        [percentiles(rng.normal(t, 1 + t, size=(units, 101)), GRID) for t in range(count)]
    )


def test_the_median_and_the_spread_are_compared_with_the_first_record(rng):
    grid = samples(rng)
    p15, p50, p85 = (grid[..., GRID.index(p)] for p in (15, 50, 85))
    np.testing.assert_array_equal(drift.median_shift(grid, GRID), p50 - p50[0])
    np.testing.assert_allclose(
        drift.spread_change(grid, GRID), (p85 - p15) - (p85[0] - p15[0]), rtol=1e-12
    )


def test_a_unit_that_begins_constant_has_a_finite_change_of_spread():
    grid = records(np.zeros(len(GRID)), GRID)
    np.testing.assert_array_equal(drift.spread_change(grid, GRID), [[0], [70]])


def test_the_distance_is_the_integral_also_where_quantile_functions_cross(rng):
    for _ in range(20):
        a, b = np.sort(rng.normal(size=(2, len(GRID))))
        expected = np.abs(quantiles(a) - quantiles(b)).mean()
        assert drift.wasserstein(a, b, GRID) == pytest.approx(expected, rel=1e-6)


def test_the_distance_where_it_is_known():
    a = np.array(GRID) / 100  # uniform on [0, 1]
    assert drift.wasserstein(a, 3 * a, GRID) == pytest.approx(1)  # integral of 2u
    assert drift.wasserstein(a, np.full(len(a), 0.5), GRID) == pytest.approx(0.25)
    assert drift.wasserstein([0, 1], [1, 0.5], [0, 100]) == pytest.approx(5 / 12)  # crosses at 2/3


@given(distributions, st.floats(-1e6, 1e6))
def test_a_shift_of_the_whole_distribution_is_the_distance(a, shift):
    distance = drift.wasserstein(a, a + shift, GRID)
    assert distance == pytest.approx(abs(shift), rel=1e-9, abs=1e-8)


@given(distributions, distributions, distributions)
def test_the_distance_is_a_metric(a, b, c):
    ab, bc, ac = (drift.wasserstein(*pair, GRID) for pair in ((a, b), (b, c), (a, c)))
    assert ab == drift.wasserstein(b, a, GRID)
    assert (ab == 0) == np.array_equal(a, b)
    assert ac <= (ab + bc) * (1 + 1e-12)
    assert drift.wasserstein(a, a, GRID) == 0


def test_distances_from_the_first_and_from_the_previous_record(rng):
    grid = samples(rng, count=4)
    first = drift.distance_from_first(grid, GRID)
    previous = drift.distance_from_previous(grid, GRID)
    assert first.shape == previous.shape == (4, 4)
    for t, u in np.ndindex(4, 4):
        expected = drift.wasserstein(grid[0, u], grid[t, u], GRID)
        assert first[t, u] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(previous[0]).all()
    for t, (before, after) in enumerate(pairwise(grid), start=1):
        np.testing.assert_array_equal(previous[t], drift.wasserstein(before, after, GRID))


@pytest.mark.parametrize("nonlinearity", drift.ACTIVE_RANGE)
def test_the_ends_of_the_active_range_are_where_the_derivative_is_a_tenth(nonlinearity):
    for end in drift.ACTIVE_RANGE[nonlinearity]:
        if math.isfinite(end) and end != 0:  # at 0 it jumps
            maximum = gradients[nonlinearity](1e-9)
            assert gradients[nonlinearity](end) == pytest.approx(maximum / 10, rel=1e-12)
    assert drift.ACTIVE_RANGE["sigmoid"][1] == pytest.approx(3.6369, abs=1e-4)
    s = 1 / (1 + math.exp(-drift.ACTIVE_RANGE["sigmoid"][1]))
    assert s * (1 - s) == pytest.approx(0.025, rel=1e-12)


@pytest.mark.parametrize("nonlinearity", drift.ACTIVE_RANGE)
@given(stored=distributions.map(lambda a: a / 1e5) | distributions)
def test_the_saturated_share_is_that_of_the_piecewise_linear_distribution(nonlinearity, stored):
    low, high = drift.ACTIVE_RANGE[nonlinearity]
    x = quantiles(stored, 20_001)
    share = drift.saturated_fraction(records(stored), GRID, nonlinearity)
    assert share == pytest.approx(((x <= low) | (x >= high)).mean(), abs=2 / 20_000)


@pytest.mark.parametrize("nonlinearity", drift.ACTIVE_RANGE)
def test_the_saturated_share_estimates_that_of_the_examples(nonlinearity, rng):
    x = rng.normal(-0.5, 3, size=(5, 5_000))
    gradient = gradients[nonlinearity]
    expected = (gradient(x) < gradient(np.array(1e-9)) / 10).mean(axis=1)
    share = drift.saturated_fraction(percentiles(x, GRID)[None], GRID, nonlinearity)
    np.testing.assert_allclose(share[0], expected, atol=0.02)


@pytest.mark.parametrize(
    ("value", "saturated"),
    [
        (-5.0, {"sigmoid", "tanh", "relu", "leaky_relu", "elu"}),
        (-2.5, {"tanh", "relu", "leaky_relu", "elu"}),
        (-1.0, {"relu", "leaky_relu"}),
        (0.0, {"relu", "leaky_relu"}),
        (1.0, set()),
        (5.0, {"sigmoid", "tanh"}),
    ],
)
def test_a_constant_unit_is_saturated_as_a_whole_or_not_at_all(value, saturated):
    grid = records(np.full(len(GRID), value))
    for nonlinearity in drift.ACTIVE_RANGE:
        expected = nonlinearity in saturated
        assert drift.saturated_fraction(grid, GRID, nonlinearity) == [[expected]]
        assert drift.dead(grid, GRID, nonlinearity) == [[expected]]


def test_ties_at_an_end_count_as_a_whole():
    stored = np.where(np.array(GRID) <= 50, 0.0, 1.0)  # p50 is 0, p65 is 1
    assert drift.saturated_fraction(records(stored), GRID, "relu") == [[0.5]]


def test_dead_is_saturated_on_one_side():
    both = np.where(np.array(GRID) < 50, -9.0, 9.0)
    left = np.linspace(-9, -4, len(GRID))
    grid = records(both, left, -left[::-1], np.linspace(-9, 0, len(GRID)))
    assert drift.dead(grid, GRID, "sigmoid").ravel().tolist() == [False, True, True, False]
    assert drift.dead(grid, GRID, "relu").ravel().tolist() == [False, True, False, True]


@given(distributions)
def test_a_dead_unit_is_wholly_saturated(stored):
    for nonlinearity in drift.ACTIVE_RANGE:
        if drift.dead(records(stored), GRID, nonlinearity):
            assert drift.saturated_fraction(records(stored), GRID, nonlinearity) == 1


@pytest.mark.parametrize("name", drift.MEASURES)
@pytest.mark.parametrize("nonlinearity", drift.ACTIVE_RANGE)
def test_each_measure_tells_what_it_is_and_gives_a_number_for_each_unit(name, nonlinearity, rng):
    measure = drift.MEASURES[name]
    grid = samples(rng).astype(np.float32)
    values = measure.values(grid, GRID, nonlinearity)
    assert (values.shape, values.dtype) == ((3, 4), np.float64)
    assert np.isfinite(values[1:]).all()
    assert measure.label.endswith(")")
    assert measure.explanation.endswith(".")
    assert measure.values(grid[:0], GRID, nonlinearity).shape == (0, 4)
    assert measure.values(grid[:1], GRID, nonlinearity).shape == (1, 4)


@pytest.mark.parametrize("name", drift.MEASURES)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_diverging_unit_has_no_value_and_the_others_do(name, broken, rng):
    grid = samples(rng, count=4)
    grid[2, 1] = broken
    values = drift.MEASURES[name].values(grid, GRID, "sigmoid")
    first = 1 if name == "distance_from_previous" else 0
    assert np.isnan(values[2, 1])
    assert np.isfinite(values[first:, [0, 2, 3]]).all()
    assert np.isfinite(values[1, 1])


def test_one_infinite_end_leaves_what_does_not_need_it(rng):
    grid = samples(rng)
    grid[1, 0, -1] = np.inf
    assert np.isfinite(drift.median_shift(grid, GRID)).all()
    assert np.isnan(drift.distance_from_first(grid, GRID)[1, 0])
    assert np.isnan(drift.saturated_fraction(grid, GRID, "relu")[1, 0])
    assert np.isnan(drift.MEASURES["dead"].values(grid, GRID, "relu")[1, 0])
    assert not drift.dead(grid, GRID, "sigmoid")[1, 0]


def test_what_cannot_be_measured_is_refused():
    grid = np.zeros((2, 1, 3))
    with pytest.raises(ValueError, match="needs percentage 50, got"):
        drift.median_shift(grid, [0, 15, 100])
    with pytest.raises(ValueError, match="3 percentiles, but 15 percentages"):
        drift.median_shift(grid, GRID)
    for percentages in ([1, 50, 100], [0, 50, 99], [0, 0, 100]):
        with pytest.raises(ValueError, match="ascend from 0 to 100"):
            drift.distance_from_first(grid, percentages)
    with pytest.raises(ValueError, match="unknown nonlinearity 'gelu'; known: sigmoid, tanh, relu"):
        drift.saturated_fraction(grid, [0, 50, 100], "gelu")
