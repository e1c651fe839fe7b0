"""The paper's Inception against its Figure 5, and its twin for small images."""

import pytest
import torch
from torch import nn

from bnviz import identities, inception, models
from bnviz.config import ConfigError, RunConfig
from bnviz.inference import fold, population_statistics, with_population
from bnviz.models.inception import ResponseNormalization
from bnviz.models.layers import Dropout, Layer
from bnviz.models.normalization import PerActivation
from bnviz.settings import ModelConfig

DEFAULTS = {
    "kind": "inception",
    "normalization": "batch",
    "nonlinearity": "relu",
    "initialization": "he",
}
PLAIN = {"normalization": "none", "response_normalization": True, "dropout": 0.4}


def build(shape=(3, 224, 224), classes=1000, **changes):
    return models.build(ModelConfig(**{**DEFAULTS, **changes}), shape, classes, seed=0)


def build_twin(**changes):
    return build((1, 28, 28), 10, **{"kind": "small_inception", **changes})


@pytest.fixture(scope="module")
def network():
    return build()


@pytest.fixture(scope="module")
def shapes(network):
    return shapes_of(network, (3, 224, 224))


def shapes_of(network, shape):
    """Shape of what each part of the network gives for one image, by its path."""
    found, hooks = {}, []
    for path, module in network.layers.named_modules():
        if path:

            def keep(module, args, output, path=path):
                found[path] = tuple(output.shape[1:])

            hooks.append(module.register_forward_hook(keep))
    network.eval()
    with torch.no_grad():
        found["logits"] = tuple(network(torch.rand(1, *shape)).shape[1:])
    for hook in hooks:
        hook.remove()
    return found


def multiply_adds(network, shapes):
    """Of one image, in convolutions and the classifier."""
    total = network.output.weight.numel()
    for path, module in network.layers.named_modules():
        if isinstance(module, nn.Conv2d):
            _, height, width = shapes[path]
            total += module.weight.numel() * height * width
    return total


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


FIGURE_5 = {
    "conv1": (64, 112, 112),
    "pool1": (64, 56, 56),
    "conv2_reduce": (64, 56, 56),
    "conv2": (192, 56, 56),
    "pool2": (192, 28, 28),
    "3a": (256, 28, 28),
    "3b": (320, 28, 28),
    "3c": (576, 14, 14),
    "4a": (576, 14, 14),
    "4b": (576, 14, 14),
    "4c": (576, 14, 14),
    "4d": (576, 14, 14),
    "4e": (1024, 7, 7),
    "5a": (1024, 7, 7),
    "5b": (1024, 7, 7),
    "mean": (1024, 1, 1),
    "logits": (1000,),
}
"""Output sizes, after the stride: the figure prints 3c and 4e before it."""

BRANCHES = {
    "3a": "1x1 64, 3x3_reduce 64, 3x3 64, double_reduce 64, double_1 96, double_2 96, "
    "projection 32",
    "3b": "1x1 64, 3x3_reduce 64, 3x3 96, double_reduce 64, double_1 96, double_2 96, "
    "projection 64",
    "3c": "3x3_reduce 128, 3x3 160, double_reduce 64, double_1 96, double_2 96",
    "4a": "1x1 224, 3x3_reduce 64, 3x3 96, double_reduce 96, double_1 128, double_2 128, "
    "projection 128",
    "4b": "1x1 192, 3x3_reduce 96, 3x3 128, double_reduce 96, double_1 128, double_2 128, "
    "projection 128",
    "4c": "1x1 160, 3x3_reduce 128, 3x3 160, double_reduce 128, double_1 160, double_2 160, "
    "projection 96",
    "4d": "1x1 96, 3x3_reduce 128, 3x3 192, double_reduce 160, double_1 192, double_2 192, "
    "projection 96",
    "4e": "3x3_reduce 128, 3x3 192, double_reduce 192, double_1 256, double_2 256",
    "5a": "1x1 352, 3x3_reduce 192, 3x3 320, double_reduce 160, double_1 224, double_2 224, "
    "projection 128",
    "5b": "1x1 352, 3x3_reduce 192, 3x3 320, double_reduce 192, double_1 224, double_2 224, "
    "projection 128",
}
"""Feature maps of each convolution of the modules."""


def test_every_part_has_the_size_of_figure_5(shapes):
    assert {name: shapes[name] for name in FIGURE_5} == FIGURE_5


def test_every_convolution_of_the_modules_has_the_feature_maps_of_figure_5(network, shapes):
    for name, branches in BRANCHES.items():
        convolutions = [n for n, m in network.layers.get_submodule(name).named_children()
                        if isinstance(m, Layer)]  # fmt: skip
        own = ", ".join(f"{n} {shapes[f'{name}.{n}'][0]}" for n in convolutions)
        assert own == branches, name


def test_strides_and_poolings_are_those_of_figure_5(network, shapes):
    strides = {
        path.removesuffix(".linear"): module.stride[0]
        for path, module in network.layers.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1)
    }
    halving = ["depthwise", "3c.3x3", "3c.double_2", "4e.3x3", "4e.double_2"]
    assert strides == dict.fromkeys(halving, 2)
    pools = {n: network.layers.get_submodule(f"{n}.pool") for n in BRANCHES}
    assert [n for n, pool in pools.items() if isinstance(pool, nn.MaxPool2d)] == ["3c", "4e", "5b"]
    assert {n: pool.stride for n, pool in pools.items() if pool.stride != 1} == {"3c": 2, "4e": 2}
    assert all(pool.kernel_size == 3 for pool in pools.values())


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 11_188_288),
        ({"stem": "plain"}, 11_194_984),
        ({"stem": "plain", "inception_channels": "printed"}, 11_285_224),
    ],
)
def test_parameters_with_classifier_and_bn(changes, parameters):
    assert count(build(**changes)) == parameters


def test_the_printed_rows_add_up_to_608_channels():
    shapes = shapes_of(build(inception_channels="printed"), (3, 224, 224))
    assert {n: shapes[n][0] for n in ("4b", "4c", "4d", "4e")} == {
        "4b": 576, "4c": 608, "4d": 608, "4e": 1056,
    }  # fmt: skip


def test_cost_in_multiply_adds(network, shapes):
    assert multiply_adds(network, shapes) == pytest.approx(1.93e9, rel=0.003)
    plain = build(stem="plain")
    of_plain = multiply_adds(plain, shapes_of(plain, (3, 224, 224)))
    assert of_plain == pytest.approx(2.02e9, rel=0.003)


def test_bn_is_between_each_convolution_and_its_relu_in_the_place_of_a_bias(network):
    layers = network.named_layers().values()
    assert len(layers) == 3 + 8 * 7 + 2 * 5
    for layer in layers:
        assert list(layer._modules) == ["linear", "normalization", "nonlinearity"]
        assert layer.linear.bias is None
        assert isinstance(layer.nonlinearity, nn.ReLU)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == len(layers) + 1  # the depthwise one, part of a separable one
    assert not any(isinstance(m, ResponseNormalization | Dropout) for m in network.modules())


def test_without_bn_there_are_biases_response_normalization_and_dropout():
    network = build(**PLAIN)
    weights = 10_143_384 + 1024 * 1000 + 1000
    assert count(network) == weights + 9_952  # a bias for each of the feature maps
    parts = list(network.layers._modules)
    stem = ["depthwise", "conv1", "pool1", "lrn1", "conv2_reduce", "conv2", "lrn2", "pool2"]
    assert parts[:8] == stem  # GoogLeNet's order
    assert parts[-1] == "dropout"
    assert network.layers.dropout.share == 0.4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    twin = build_twin(**PLAIN)
    assert sum(isinstance(m, ResponseNormalization) for m in twin.modules()) == 2


def test_response_normalization_is_torchs():
    x = torch.randn(4, 24, 5, 5, requires_grad=True) * 30
    reference = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
    assert torch.allclose(ResponseNormalization(24)(x), reference(x), rtol=1e-5)
    ours, theirs = (
        torch.autograd.grad(m(x).square().sum(), x)[0]
        for m in (ResponseNormalization(24), reference)
    )
    assert torch.allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("kind", ["inception", "small_inception"])
@pytest.mark.parametrize("channels", ["summed", "printed"])
def test_the_configuration_knows_the_layers(kind, channels):
    shape = (1, 28, 28) if kind == "small_inception" else (3, 64, 64)
    network = build(shape, 10, kind=kind, inception_channels=channels)
    config = ModelConfig(kind=kind, inception_channels=channels)
    units = {name: layer.linear.out_channels for name, layer in network.named_layers().items()}
    assert list(units.items()) == list(config.layers.items())


@pytest.mark.parametrize(("side", "sizes"), [(28, (14, 7, 4, 2)), (32, (16, 8, 4, 2))])
def test_the_twin_has_an_eighth_of_the_feature_maps_and_of_the_size(side, sizes):
    shapes = shapes_of(build_twin(), (1, side, side))
    first, second, third, fourth = sizes
    assert shapes["conv1"] == (64 // 8, first, first)
    assert shapes["conv2"] == (192 // 8, first, first)
    assert shapes["3a"] == (256 // 8, second, second)
    assert shapes["3c"][1:] == shapes["4a"][1:] == (third, third)
    assert shapes["4e"][1:] == (fourth, fourth)
    assert shapes["5b"] == (1024 // 8, fourth, fourth)
    assert shapes["logits"] == (10,)
    full = dict(inception.AS_SUMMED.layers())
    twin = inception.TWIN.layers()
    assert {name: units * 8 for name, units in twin.items()} == {n: full[n] for n in twin}


def test_networks_with_and_without_bn_start_from_the_same_weights():
    with_bn, without = build_twin(), build_twin(**PLAIN)
    own = without.state_dict()
    shared = {n: w for n, w in with_bn.state_dict().items() if n.endswith("linear.weight")}
    assert len(shared) == 34
    assert all(torch.equal(weight, own[name]) for name, weight in shared.items())


def test_larger_initial_weights_are_those_of_the_convolutions():
    usual, larger = build_twin(), build_twin(conv_scale=2.0)
    for (name, a), b in zip(usual.named_parameters(), larger.parameters(), strict=True):
        factor = 2 if a.dim() == 4 else 1
        assert torch.equal(factor * a, b), name


def test_statistics_for_each_activation_are_in_the_last_module_alone():
    layers = build_twin(bn_per="last_activations").named_layers()
    own = {n for n, layer in layers.items() if isinstance(layer.normalization, PerActivation)}
    assert own == {n for n in layers if n.startswith("5b_")}
    everywhere = build_twin(bn_per="activation").named_layers().values()
    assert all(isinstance(layer.normalization, PerActivation) for layer in everywhere)


def test_folded_network_is_the_one_with_population_statistics(mnist):
    network = build_twin()
    statistics = population_statistics(network, mnist.train_images[:120].split(60))
    population = with_population(network, statistics).eval()
    images = mnist.test_images[:50]
    with torch.no_grad():
        expected, folded = population(images), fold(population).eval()(images)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fold(population).modules())
    assert torch.allclose(expected, folded, atol=1e-4 * float(expected.abs().max()))


def test_the_papers_identities_hold_in_every_layer_of_the_twin(mnist):
    examples = [(mnist.train_images[:20], mnist.train_labels[:20])]
    [checks] = identities.check([build_twin()], examples)
    assert {check.layer for check in checks} == set(ModelConfig(kind="small_inception").layers)
    assert max(check.error for check in checks if check.units) < 1e-6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.kind": "inception"}, "the images are 28×28, and its poolings need 64×64"),
        (
            {"model.normalization": "whitening", "training.precision": "mixed"},
            "training.precision = 'mixed': whitening needs",
        ),
        (
            {"trace.predictions": True, "model.kind": "small_inception"},
            "crops make grey levels of binary pixels",
        ),
        ({"model.bn_per": "last_activations"}, "the mlp has no last module"),
        ({"trace.layers": ["conv7"]}, "there is no layer conv7; choose among hidden1"),
        ({"trace.layers": "hidden1"}, "a list of 0 to 100 names"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as caught:
        RunConfig().replace(changes)
    assert sentence in str(caught.value)
    assert len(caught.value.problems) == 1
