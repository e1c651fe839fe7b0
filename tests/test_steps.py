"""The written-out update against autograd's, to the bit."""

import itertools

import pytest
import torch

from bnviz import steps
from bnviz.steps import AutogradStep, WrittenOutStep
from bnviz.trainer import Trainer
from bnviz.training import proceed

from .conftest import small

VARIANTS = {
    **{
        f"{kind}, {nonlinearity}": {
            "model__normalization": kind,
            "model__nonlinearity": nonlinearity,
        }
        for kind, nonlinearity in itertools.product(
            ("none", "batch"), ("sigmoid", "relu", "tanh", "leaky_relu", "elu")
        )
    },
    "fixed γ and β": {"model__normalization": "batch", "model__bn_affine": "fixed"},
    "one layer": {"model__hidden": [17]},
    "ε and momentum": {
        "model__normalization": "batch",
        "model__bn_epsilon": 0.01,
        "model__bn_momentum": 0.3,
    },
    "momentum, L2, schedule": {
        "optimizer__momentum": 0.9,
        "optimizer__nesterov": True,
        "optimizer__l2": 0.001,
        "optimizer__schedule": "cosine",
    },
    "adam": {"optimizer__kind": "adam", "optimizer__learning_rate": 0.01},
    "adagrad": {"optimizer__kind": "adagrad"},
}


def finish(config, digits):
    trainer = Trainer(config, digits)
    list(proceed(trainer))
    return trainer


@pytest.mark.parametrize("variant", VARIANTS)
def test_written_out_and_by_autograd_it_ends_the_same_to_the_bit(digits, variant, monkeypatch):
    config = small(training__steps=30, trace__records=0, **VARIANTS[variant])
    written = finish(config, digits)
    assert isinstance(written.train_step, WrittenOutStep)
    monkeypatch.setattr(steps, "written_out", lambda model: False)
    autograd = finish(config, digits)
    assert isinstance(autograd.train_step, AutogradStep)
    for name, value in written.model.state_dict().items():
        assert torch.equal(value, autograd.model.state_dict()[name]), name
    assert torch.equal(written.losses, autograd.losses)


@pytest.mark.parametrize(
    "variant",
    [
        {"model__kind": "cnn", "model__channels": [3], "model__hidden": [8]},
        {"model__dropout": 0.5},
        {"model__normalization": "layer"},
        {"model__normalization": "batch", "model__bn_placement": "after"},
    ],
    ids=str,
)
def test_other_networks_are_left_to_autograd(digits, variant):
    assert isinstance(Trainer(small(**variant), digits).train_step, AutogradStep)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_step_tells_the_pre_activations_of_its_pass(digits, kind):
    config = small(model__kind=kind, model__channels=[3], model__hidden=[8, 5])
    one, two = (Trainer(config, digits) for _ in range(2))
    images, labels = digits.train_images[:60], digits.train_labels[:60]
    seen = {}
    told = one.train_step(images, labels, seen)
    assert torch.equal(told, two.train_step(images, labels))
    assert set(seen) == set(config.model.layers)
    layer = Trainer(config, digits).model.named_layers()["conv1" if kind == "cnn" else "hidden1"]
    inputs = images if kind == "cnn" else images.flatten(1)
    x = layer.linear(inputs)
    if hasattr(layer, "normalization"):
        x = layer.normalization(x)
    assert torch.equal(next(iter(seen.values())), x)
