"""The network, and torch.nn.BatchNorm1d against the paper's own formulas in float64."""

from typing import get_args

import pytest
import torch

from bnviz import models
from bnviz.config import RunConfig, field_info
from bnviz.models.layers import Layer

SHAPE = (1, 28, 28)


def build(**model):
    config = RunConfig().replace({f"model.{key}": value for key, value in model.items()})
    return models.build(config.model, SHAPE, classes=10, seed=config.training.seed)


def test_architecture_is_the_papers():
    network = build(normalization="batch")
    linear = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [
        (100, 784),
        (100, 100),
        (100, 100),
        (10, 100),
    ]
    assert [m.bias is not None for m in linear] == [False, False, False, True]
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in network.modules()) == 3
    plain = build(normalization="none")
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in plain.modules())
    assert all(m.bias is not None for m in plain.modules() if isinstance(m, torch.nn.Linear))


def test_networks_with_and_without_bn_start_from_the_same_weights():
    plain, normalized = build(normalization="none"), build(normalization="batch")
    shared = {k: v for k, v in plain.state_dict().items() if k.endswith("weight")}
    for name, weight in shared.items():
        assert torch.equal(weight, normalized.state_dict()[name])


def test_weights_are_gaussian_with_the_chosen_std():
    weight = build(init_std=0.3).layers.hidden1.linear.weight
    assert weight.std().item() == pytest.approx(0.3, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=0.01)
    scaled = weight.flatten() / 0.3
    assert (scaled.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.01)


@pytest.mark.parametrize(
    ("initialization", "std"),
    [("glorot", (2 / (784 + 100)) ** 0.5), ("he", (2 / 784) ** 0.5), ("orthogonal", 784**-0.5)],
)
def test_other_initializations_have_the_std_of_their_papers(initialization, std):
    layer = build(initialization=initialization, normalization="none", init_std=9.0).layers.hidden1
    weight = layer.linear.weight.detach()
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=0.002)
    again = build(initialization=initialization, normalization="batch").layers.hidden1.linear.weight
    assert torch.equal(weight, again)  # the seed decides, with and without BN
    if initialization == "orthogonal":
        torch.testing.assert_close(weight @ weight.T, torch.eye(100), atol=1e-5, rtol=0)


@pytest.mark.parametrize("nonlinearity", get_args(field_info("model.nonlinearity").annotation))
def test_each_nonlinearity_is_torchs_and_has_a_gradient(nonlinearity):
    layer = build(nonlinearity=nonlinearity).layers.hidden1
    x = torch.linspace(-3, 3, 40, dtype=torch.float64, requires_grad=True)  # without the kink at 0
    y = layer.nonlinearity(x)
    torch.testing.assert_close(y, getattr(torch.nn.functional, nonlinearity)(x))
    assert torch.autograd.gradcheck(layer.nonlinearity, (x,))


def test_bn_stands_immediately_before_the_nonlinearity():
    layer = build(normalization="batch").layers.hidden1
    assert isinstance(layer, Layer)
    u = torch.rand(60, 784)
    expected = torch.sigmoid(layer.normalization(layer.linear(u)))
    assert torch.equal(layer(u), expected)


def algorithm_1(x, gamma, beta, epsilon):
    """Forward pass of Algorithm 1."""
    mean = x.mean(dim=0)
    variance = ((x - mean) ** 2).mean(dim=0)  # biased
    x_hat = (x - mean) / torch.sqrt(variance + epsilon)
    return gamma * x_hat + beta, mean, variance, x_hat


def backward(x, gamma, dy, epsilon):
    """The paper's formulas after Algorithm 1, one by one."""
    _, mean, variance, x_hat = algorithm_1(x, gamma, 0, epsilon)
    m = len(x)
    dx_hat = dy * gamma
    dvariance = (dx_hat * (x - mean) * -0.5 * (variance + epsilon) ** -1.5).sum(0)
    dmean = (
        -(dx_hat / torch.sqrt(variance + epsilon)).sum(0) + dvariance * (-2 * (x - mean)).sum(0) / m
    )
    dx = dx_hat / torch.sqrt(variance + epsilon) + dvariance * 2 * (x - mean) / m + dmean / m
    return dx, (dy * x_hat).sum(0), dy.sum(0)


@pytest.fixture
def bn_case():
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layer = torch.nn.BatchNorm1d(5, eps=1e-3, momentum=0.2).double()
    with torch.no_grad():
        layer.weight.copy_(draw(5))
        layer.bias.copy_(draw(5))
    return layer, (3 * draw(7, 5) + 1).requires_grad_(), draw(7, 5)


def test_bn_forward_is_algorithm_1(bn_case):
    layer, x, _ = bn_case
    expected, *_ = algorithm_1(x, layer.weight, layer.bias, layer.eps)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_bn_backward_is_the_papers_formulas(bn_case):
    layer, x, dy = bn_case
    layer(x).backward(dy)
    dx, dgamma, dbeta = backward(x.detach(), layer.weight.detach(), dy, layer.eps)
    torch.testing.assert_close(x.grad, dx, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.weight.grad, dgamma, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.bias.grad, dbeta, rtol=1e-10, atol=1e-12)


def test_bn_backward_agrees_with_finite_differences(bn_case):
    layer, x, dy = bn_case
    dx, *_ = backward(x.detach(), layer.weight.detach(), dy, layer.eps)
    step = 1e-6
    for i, j in [(0, 0), (3, 2), (6, 4)]:
        moved = x.detach().repeat(2, 1, 1)
        moved[0, i, j] += step
        moved[1, i, j] -= step
        up, down = ((layer(each) * dy).sum() for each in moved)
        assert dx[i, j].item() == pytest.approx((up - down).item() / (2 * step), rel=1e-5, abs=1e-8)


def test_running_statistics_use_the_unbiased_variance_and_inference_uses_them(bn_case):
    layer, x, _ = bn_case
    layer(x)
    _, mean, variance, _ = algorithm_1(x, layer.weight, layer.bias, layer.eps)
    m, momentum = len(x), 0.2
    running_mean = momentum * mean  # from 0
    running_variance = (1 - momentum) * 1 + momentum * variance * m / (m - 1)  # from 1
    torch.testing.assert_close(layer.running_mean, running_mean.detach())
    torch.testing.assert_close(layer.running_var, running_variance.detach())
    layer.eval()
    expected = (x - running_mean) / torch.sqrt(running_variance + layer.eps)
    torch.testing.assert_close(layer(x), layer.weight * expected + layer.bias)
