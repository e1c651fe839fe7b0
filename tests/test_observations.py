import numpy as np
import torch

from bnviz.observations import Observations, summarize_there
from bnviz.percentiles import summarize
from bnviz.schema import GRID


def records_of(steps, seen):
    observations = Observations(seen)
    for step in steps:
        observations.add(step, {name: of(step) for name, of in seen.items()})
        if observations.full:
            yield from observations.take()
    yield from observations.take()


def test_records_are_numpys_of_the_values_of_each_unit_in_order():
    values = torch.randn(200, 60, 5, generator=torch.Generator().manual_seed(0))
    wide = torch.randn(200, 60, 900, generator=torch.Generator().manual_seed(1))
    records = list(records_of(range(200), {"a": lambda s: values[s], "b": lambda s: wide[s]}))
    for layer, whole in (("a", values), ("b", wide)):
        own = [record for record in records if record.layer == layer]
        assert [record.step for record in own] == list(range(200))
        for record in own:
            expected = whole[record.step].double().numpy()  # (60, units)
            np.testing.assert_allclose(record.grid.T, np.percentile(expected, GRID, axis=0))
            np.testing.assert_allclose(record.mean, expected.mean(0), atol=1e-6)
            np.testing.assert_allclose(record.std, expected.std(0), rtol=1e-6)


def test_a_feature_map_is_one_unit_over_examples_and_locations():
    maps = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    [record] = records_of([7], {"conv1": lambda step: maps})
    expected = maps.double().numpy()
    np.testing.assert_allclose(record.grid.T, np.percentile(expected, GRID, axis=(0, 2, 3)))
    np.testing.assert_allclose(record.mean, expected.mean((0, 2, 3)), atol=1e-6)


def test_it_says_when_it_holds_much():
    observations = Observations({"a"})
    observations.add(2, {"a": torch.zeros(10, 3)})
    assert not observations.full
    observations.add(3, {"a": torch.zeros(10, 3)})
    assert [r.step for r in observations.take()] == [2, 3]
    observations.add(4, {"a": torch.zeros(1000, 1000)})
    assert observations.full
    assert [r.step for r in observations.take()] == [4]
    assert not observations.full
    assert list(observations.take()) == []


def test_a_record_does_not_depend_on_those_taken_with_it():
    """When records are taken is a matter of time."""
    maps = torch.randn(20, 6, 3, 4, 50, generator=torch.Generator().manual_seed(0))
    together = list(records_of(range(20), {"conv1": lambda step: maps[step]}))
    for record in together:
        [alone] = records_of([record.step], {"conv1": lambda step: maps[step]})
        for name in ("mean", "std", "grid"):
            assert getattr(alone, name).tobytes() == getattr(record, name).tobytes()


def test_values_that_are_not_finite_make_no_warning_and_no_wrong_number():
    values = torch.zeros(4, 3)
    values[1, 1], values[2, 2] = float("nan"), float("inf")
    [record] = records_of([0], {"a": lambda step: values})
    assert np.isnan(record.grid[1]).all()
    assert np.isnan([record.mean[1], record.std[1], record.std[2]]).all()
    assert record.grid[2, -1] == np.inf
    assert (record.mean[0], record.std[0]) == (0, 0)


def test_the_summary_for_other_devices_is_that_of_the_cpu():
    """Here it is computed on the CPU, too."""
    maps = torch.randn(3, 6, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    maps[1, 2, 1, 0, 0] = torch.nan
    maps[2, :, 3] = torch.inf
    maps[0, 0, 0, 0, 0] = -torch.inf
    rows = maps.transpose(1, 2).reshape(12, -1).contiguous().numpy()
    for expected, got in zip(summarize(rows, GRID), summarize_there(list(maps)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
