"""Each normalization against its formulas in float64, and finite differences."""

import numpy as np
import pytest
import torch

from bnviz.models.normalization import (
    RENORM_BEGIN,
    RENORM_D_MAX,
    RENORM_FULL,
    RENORM_R_MAX,
    BatchRenorm,
    InverseSquareRoot,
    PerActivation,
    Whitening,
    normalization,
)
from bnviz.settings import ModelConfig

KINDS = ("batch", "layer", "group", "instance", "batch_renorm", "whitening")
EPSILON = 1e-3


def draw(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def layer(kind, shape, **model):
    config = ModelConfig(normalization=kind, bn_epsilon=EPSILON, groups=2, **model)
    built = normalization(config, shape)
    assert built is not None
    return built.double()


def over(kind, x):
    """Over which dimensions of x, (N, units, p, q) or grouped, mean and variance are taken."""
    return {
        "batch": (0, 2, 3),
        "batch_renorm": (0, 2, 3),
        "layer": (1, 2, 3),
        "instance": (2, 3),
    }[kind]


@pytest.mark.parametrize("kind", ["batch", "layer", "instance", "batch_renorm"])
def test_mean_and_variance_are_over_what_the_name_says(kind):
    x = 3 * draw(5, 6, 4, 4) + 1
    where = over(kind, x)
    mean = x.mean(where, keepdim=True)
    variance = ((x - mean) ** 2).mean(where, keepdim=True)
    expected = (x - mean) / torch.sqrt(variance + EPSILON)
    torch.testing.assert_close(layer(kind, (6, 4, 4))(x), expected, rtol=1e-9, atol=1e-9)


def test_group_normalization_is_over_each_group_of_an_example():
    x = 3 * draw(5, 6, 4, 4) + 1
    grouped = x.view(5, 2, 3 * 16)
    mean = grouped.mean(2, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(2, keepdim=True)
    expected = ((grouped - mean) / torch.sqrt(variance + EPSILON)).view_as(x)
    torch.testing.assert_close(layer("group", (6, 4, 4))(x), expected, rtol=1e-9, atol=1e-9)


def test_of_a_feature_map_statistics_and_gamma_are_one():
    bn = layer("batch", (6, 4, 4))
    assert bn.weight.shape == bn.bias.shape == bn.running_mean.shape == (6,)
    x = 3 * draw(5, 6, 4, 4) + 1
    bn(x)
    torch.testing.assert_close(bn.running_mean, 0.1 * x.mean((0, 2, 3)))
    m = 5 * 4 * 4  # m' = m·p·q (Section 3.2)
    unbiased = x.var((0, 2, 3), correction=0) * m / (m - 1)
    torch.testing.assert_close(bn.running_var, 0.9 + 0.1 * unbiased)


def test_per_activation_each_location_has_its_own():
    bn = layer("batch", (6, 4, 4), bn_per="activation")
    assert isinstance(bn, PerActivation)
    assert bn.weight.shape == (6 * 4 * 4,)
    x = 3 * draw(5, 6, 4, 4) + 1
    mean, variance = x.mean(0), x.var(0, correction=0)
    torch.testing.assert_close(bn(x), (x - mean) / torch.sqrt(variance + EPSILON))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_agree_with_finite_differences(kind, training):
    shape = (4, 3, 3)
    module = layer(kind, shape).train(training)
    module(2 * draw(3, *shape, seed=2))  # running statistics away from 0 and 1
    if kind == "batch_renorm":
        module.num_batches_tracked.fill_(RENORM_BEGIN)  # r and d, without gradient, are 1 and 0
    if training:
        module.track_running_stats = False  # gradcheck calls it many times
    x = (3 * draw(3, *shape) + 1).requires_grad_()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(draw(*parameter.shape, seed=3))
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_gamma_and_beta_are_no_parameters(kind):
    assert not list(layer(kind, (6, 4, 4), bn_affine="fixed").parameters())
    sizes = [p.numel() for p in layer(kind, (6, 4, 4)).parameters()]
    assert sizes == [6, 6]  # one of each for a feature map


@pytest.mark.parametrize("kind", ["layer", "group", "instance"])
def test_without_the_batch_one_example_is_normalized_as_among_others(kind):
    module = layer(kind, (6, 4, 4))
    x = draw(5, 6, 4, 4)
    torch.testing.assert_close(module(x)[2:3], module(x[2:3]))
    torch.testing.assert_close(module(x), module.eval()(x))


def test_an_mlp_has_no_instance_normalization():
    assert normalization(ModelConfig(normalization="instance"), (7,)) is None


# Batch renormalization (Ioffe 2017, Algorithm 1)


def renorm_reference(x, mean, variance, r_max, d_max):
    """x̂ = (x − μ_B)/σ_B · r + d for x (m, units)."""
    deviation = torch.sqrt(x.var(0, correction=0) + EPSILON)
    running = torch.sqrt(variance + EPSILON)
    r = torch.clamp(deviation / running, 1 / r_max, r_max)
    d = torch.clamp((x.mean(0) - mean) / running, -d_max, d_max)
    return (x - x.mean(0)) / deviation * r + d


@pytest.mark.parametrize(
    ("batches", "r_max", "d_max"),
    [
        (0, 1.0, 0.0),
        (RENORM_BEGIN, 1.0, 0.0),
        ((RENORM_BEGIN + RENORM_FULL) // 2, (1 + RENORM_R_MAX) / 2, RENORM_D_MAX / 2),
        (RENORM_FULL + 9, RENORM_R_MAX, RENORM_D_MAX),
    ],
)
def test_batch_renormalization_is_its_algorithm(batches, r_max, d_max):
    module = BatchRenorm(5, eps=EPSILON, momentum=0.2).double()
    mean, variance = draw(5), draw(5).exp()
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance)
    module.num_batches_tracked.fill_(batches)
    x = 4 * draw(7, 5, seed=4) + 9
    expected = renorm_reference(x, mean, variance, r_max, d_max)
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(module.running_mean, 0.8 * mean + 0.2 * x.mean(0))
    torch.testing.assert_close(module.running_var, 0.8 * variance + 0.2 * x.var(0))  # unbiased
    assert module.num_batches_tracked == batches + 1


def test_within_its_bounds_batch_renormalization_trains_what_it_infers():
    module = BatchRenorm(5, eps=EPSILON).double()
    module.num_batches_tracked.fill_(RENORM_FULL)
    module.running_mean.fill_(0.3)
    module.track_running_stats = False
    x = draw(9, 5)
    torch.testing.assert_close(module(x), module.eval()(x))


def test_r_and_d_have_no_gradient():
    module = BatchRenorm(5, eps=EPSILON).double()
    module.num_batches_tracked.fill_(RENORM_FULL)
    x = draw(7, 5).requires_grad_()
    dy = draw(7, 5, seed=5)
    module(x).backward(dy)
    deviation = torch.sqrt(x.var(0, correction=0) + EPSILON).detach()
    r = deviation / np.sqrt(1 + EPSILON)  # of the initial running variance, 1
    x_hat = ((x - x.mean(0)) / deviation).detach()
    dx = r / deviation * (dy - dy.mean(0) - x_hat * (dy * x_hat).mean(0))
    torch.testing.assert_close(x.grad, dx)


# Whitening (Section 2)


@pytest.mark.parametrize("shape", [(200, 4), (20, 4, 3, 3)])
def test_whitening_is_the_inverse_square_root_of_the_covariance(shape):
    mix = draw(4, 4, seed=6)
    x = torch.einsum("ij,nj...->ni...", mix, draw(*shape)) + 2
    module = Whitening(4, eps=EPSILON).double()
    y = module(x)
    rows = x.transpose(0, 1).flatten(1).numpy()
    centred = rows - rows.mean(1, keepdims=True)
    # By singular values of the data, where the code takes eigenvalues of the covariance.
    axes, singular, _ = np.linalg.svd(centred, full_matrices=False)
    root = axes / np.sqrt(singular**2 / rows.shape[1] + EPSILON) @ axes.T
    expected = root @ centred
    got = y.transpose(0, 1).flatten(1).detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-10)
    np.testing.assert_allclose(np.cov(got, bias=True), np.eye(4), atol=0.05)
    # Unbiased for inference, as Algorithm 2 has it for the variance.
    unbiased = torch.from_numpy(np.cov(rows))
    torch.testing.assert_close(
        module.running_covariance, 0.9 * torch.eye(4, dtype=torch.float64) + 0.1 * unbiased
    )
    torch.testing.assert_close(module.running_mean, torch.from_numpy(0.1 * rows.mean(1)))


def test_whitening_infers_by_its_running_statistics():
    module = Whitening(3, eps=EPSILON).double().eval()
    module.running_mean.copy_(torch.tensor([1.0, 2, 3]))
    module.running_covariance.copy_(torch.diag(torch.tensor([1.0, 4, 9])))
    x = draw(5, 3)
    deviations = torch.sqrt(torch.tensor([1.0, 4, 9], dtype=torch.float64) + EPSILON)
    torch.testing.assert_close(
        module(x), (x - torch.tensor([1.0, 2, 3], dtype=torch.float64)) / deviations
    )


def test_its_gradient_is_exact_where_eigenvalues_meet():
    twice = torch.diag(torch.tensor([2.0, 2, 5], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: InverseSquareRoot.apply((a + a.T) / 2, EPSILON), (twice,)
    )


def test_with_fewer_examples_than_units_whitening_stays_finite():
    module = Whitening(30).float()
    x = draw(10, 30).float().requires_grad_()
    y = module(x)
    (y * draw(10, 30, seed=8).float()).sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


def test_what_is_not_finite_stays_visible():
    x = torch.full((5, 3), torch.inf, requires_grad=True)
    y = Whitening(3)(x)
    assert y.isnan().all()
    y.sum().backward()
    assert x.grad is not None
