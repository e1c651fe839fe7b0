import copy

import pytest
import torch

from bnviz import models
from bnviz.config import RunConfig
from bnviz.probe import Probe, observe

SHAPE = (1, 28, 28)


@pytest.fixture(params=["none", "batch", "batch_renorm", "whitening"])
def network(request):
    config = RunConfig().replace({"model.normalization": request.param, "model.hidden": [20, 12]})
    network = models.build(config.model, SHAPE, 10, seed=0)
    network.normalized = request.param != "none"
    network.train()
    network(torch.rand(50, *SHAPE))  # gives the running statistics something to lose
    return network


def layers_of(network):
    return {name: layer.nonlinearity for name, layer in network.named_layers().items()}


def hooks(network):
    return sum(len(module._forward_pre_hooks) for module in network.modules())


@pytest.mark.parametrize("bn_mode", ["batch", "running"])
def test_observes_the_input_of_each_nonlinearity(network, bn_mode):
    images = torch.rand(30, *SHAPE)
    seen = observe(network, layers_of(network), images, bn_mode)
    reference = copy.deepcopy(network)
    reference.train(bn_mode == "batch")
    u = images.flatten(1)
    for name, units in (("hidden1", 20), ("hidden2", 12)):
        layer = getattr(reference.layers, name)
        expected = layer.linear(u)  # (30, units)
        if network.normalized:
            expected = layer.normalization(expected)
        assert seen[name].shape == (30, units)
        torch.testing.assert_close(seen[name], expected.detach(), rtol=1e-5, atol=1e-6)
        u = layer(u)


@pytest.mark.parametrize("bn_mode", ["batch", "running"])
@pytest.mark.parametrize("training", [True, False])
def test_changes_nothing_in_the_network(network, bn_mode, training):
    network.train(training)
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    observe(network, layers_of(network), torch.rand(30, *SHAPE), bn_mode)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(getattr(m, "track_running_stats", True) for m in network.modules())
    assert all(p.grad is None for p in network.parameters())
    assert hooks(network) == 0


def test_everything_is_put_back_after_an_exception(network):
    modes = [module.training for module in network.modules()]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        observe(network, layers_of(network), torch.rand(3, 1, 5, 1), "batch")
    assert hooks(network) == 0
    assert [module.training for module in network.modules()] == modes
    assert all(getattr(m, "track_running_stats", True) for m in network.modules())


def test_of_a_convolution_it_observes_maps():
    model = RunConfig().replace({"model.kind": "cnn", "model.hidden": [7]}).model
    network = models.build(model, (3, 32, 32), 10, seed=0)
    images = torch.rand(6, 3, 32, 32)
    seen = observe(network, layers_of(network), images, "batch")
    assert {name: tuple(values.shape) for name, values in seen.items()} == {
        "conv1": (6, 16, 28, 28),
        "conv2": (6, 32, 10, 10),
        "hidden1": (6, 7),
    }
    conv = network.layers.conv1
    torch.testing.assert_close(seen["conv1"], conv.normalization(conv.linear(images)).detach())


def test_hooks_are_there_only_inside_the_context(network):
    with Probe(layers_of(network)):
        assert hooks(network) == 2
    assert hooks(network) == 0
