"""Each preset runs, and those with a claim that shows at once show it."""

import pytest

from bnviz.data import ImageData
from bnviz.presets import presets
from bnviz.records import Diverged, Metrics, Percentiles, Progress
from bnviz.trainer import Trainer
from bnviz.training import proceed


@pytest.fixture(scope="module")
def some_digits(mnist):
    return ImageData(
        mnist.train_images[:1000],
        mnist.train_labels[:1000],
        mnist.test_images[:100],
        mnist.test_labels[:100],
    )


@pytest.mark.parametrize("name", [name for name in presets() if not name.startswith("imagenet")])
def test_each_of_its_runs_trains(name, some_digits):
    for run_name, config in presets()[name].runs.items():
        brief = config.replace({"training.steps": 2, "training.evaluations": 1, "trace.records": 1})
        records = list(proceed(Trainer(brief, some_digits)))
        assert isinstance(records[-1], Progress | Diverged), run_name
        layers = {r.layer: len(r.grid) for r in records if isinstance(r, Percentiles)}
        assert layers == config.traced_layers, run_name
        assert any(isinstance(r, Metrics) and r.split == "test" for r in records), run_name


def end(name, run, data, steps):
    config = presets()[name].runs[run]
    brief = config.replace({"training.steps": steps, "training.evaluations": 1, "trace.records": 0})
    records = proceed(Trainer(brief, data))
    return [r for r in records if isinstance(r, Metrics | Diverged)][-1]


def test_at_a_high_rate_the_network_without_bn_diverges_and_with_bn_learns(mnist):
    diverged = end("high-rate", "without-bn", mnist, 300)
    assert isinstance(diverged, Diverged)
    assert diverged.step < 20
    assert end("high-rate", "with-bn", mnist, 300).accuracy > 0.7


def test_of_deep_sigmoid_networks_only_the_one_with_bn_learns(mnist):
    assert end("deep-sigmoid", "without-bn", mnist, 300).accuracy < 0.2
    assert end("deep-sigmoid", "with-bn", mnist, 300).accuracy > 0.7
