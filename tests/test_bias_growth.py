"""Section 2's example of a growing bias, held to autograd and to what the paper claims."""

import itertools

import numpy as np
import pytest
import torch

from bnviz.bias_growth import examples, gradient, simulate

WAYS = list(itertools.product((False, True), repeat=2))


def by_autograd(u, t, weight, bias, scaling, through):
    u, t = torch.tensor(u), torch.tensor(t)
    w, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (weight, bias))
    x = w * u + b
    mean = x.mean()
    deviation = x.var(correction=0).sqrt() if scaling else torch.ones((), dtype=torch.float64)
    if not through:
        mean, deviation = mean.detach(), deviation.detach()
    loss = ((x - mean) / deviation - t).square().mean() / 2
    loss.backward()
    return loss.item(), w.grad.item(), b.grad.item()


@pytest.mark.parametrize(("scaling", "through"), WAYS)
def test_each_step_is_that_of_autograd(scaling, through):
    u, t = examples(seed=3)
    run = simulate(30, 0.3, seed=3, scaling=scaling, through=through)
    for step in range(30):
        weight, bias = run.weight[step], run.bias[step]
        loss, by_weight, by_bias = by_autograd(u, t, weight, bias, scaling, through)
        assert run.loss[step] == pytest.approx(loss, rel=1e-12)
        learned = by_weight if scaling else 0.0
        assert run.weight[step + 1] == pytest.approx(weight - 0.3 * learned, rel=1e-9, abs=1e-12)
        assert run.bias[step + 1] == pytest.approx(bias - 0.3 * by_bias, rel=1e-9, abs=1e-12)


def test_ignoring_the_mean_the_bias_grows_linearly_and_the_loss_stays():
    run = simulate(1000, 0.1, scaling=False, through=False)
    np.testing.assert_allclose(run.bias, 0.1 * np.arange(1001), rtol=1e-9)  # t has mean 1
    np.testing.assert_allclose(run.loss, run.loss[0], rtol=1e-12)
    assert run.bias[-1] > 99


@pytest.mark.parametrize("scaling", [False, True])
def test_through_the_normalization_nothing_moves(scaling):
    run = simulate(1000, 1.0, scaling=scaling, through=True)
    np.testing.assert_allclose(run.bias, 0, atol=1e-12)
    np.testing.assert_allclose(run.weight, 1, atol=1e-12)
    np.testing.assert_allclose(run.loss, run.loss[0], rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_ignoring_the_deviation_is_worse(seed):
    """The weight shrinks although that changes nothing, until it comes near 0 and is thrown."""
    run = simulate(1000, 0.1, seed, scaling=True, through=False)
    crossing = int(np.argmax(run.weight < 0))
    assert crossing > 10
    assert (np.diff(run.weight[:crossing]) < 0).all()
    np.testing.assert_allclose(run.loss[:crossing], run.loss[0], rtol=1e-9)
    assert run.loss[crossing] > 1.5 * run.loss[0]
    assert np.diff(run.bias).max() > 3 * 0.1  # with centring alone no step is above 0.1
    assert (np.diff(run.bias[:crossing]) >= 0.1 - 1e-12).all()


def test_the_gradient_is_that_of_the_loss_where_it_goes_through():
    """Central differences."""
    u, t = examples(seed=1)

    def loss(weight, bias):
        return gradient(u, t, weight, bias, scaling=False, through=True)[0]

    _, by_weight, by_bias = gradient(u, t, 0.7, -2.0, scaling=False, through=True)
    h = 1e-5
    difference = (loss(0.7 + h, -2.0) - loss(0.7 - h, -2.0)) / (2 * h)
    assert by_weight == pytest.approx(difference, rel=1e-6)
    assert abs(by_bias) < 1e-15
    assert loss(0.7, 5.0) == pytest.approx(loss(0.7, -2.0), rel=1e-12)
