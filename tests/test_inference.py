"""Algorithm 2 against its formulas in float64, and each way to normalize against a loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bnviz import inference, models
from bnviz.config import RunConfig
from bnviz.evaluation import Stopped, evaluate, predict
from bnviz.inference import (
    FoldError,
    alone,
    fold,
    population_statistics,
    training_batches,
    training_images,
    with_population,
)
from bnviz.settings import ModelConfig
from bnviz.trainer import Trainer
from bnviz.training import proceed

from .conftest import small

SHAPE = (1, 12, 12)
CNN = {"kind": "cnn", "channels": (3, 4), "kernel": 3, "hidden": (6,)}
MLP = {"kind": "mlp", "hidden": (6, 5)}
OVER_BATCH = ("batch", "batch_renorm", "whitening")


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def network(**model):
    """In float64, with statistics, γ and β that are not those at the start."""
    config = ModelConfig(**{"initialization": "he", "bn_epsilon": 1e-3, **model})
    built = models.build(config, SHAPE, 10, 0).double().train()
    with torch.no_grad():
        for seed, parameter in enumerate(p for p in built.parameters() if p.dim() == 1):
            parameter.add_(draw(*parameter.shape, seed=seed) - 0.3)
    for seed in range(30):
        built(draw(40, *SHAPE, seed=seed))
    return built


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# Population statistics


def test_population_statistics_are_those_of_algorithm_2():
    """Redone with numpy for conv1, whose input is that of every network, and for hidden1."""
    model = network(**CNN, dropout=0.5)
    images = [draw(8, *SHAPE, seed=100 + i) for i in range(5)]
    found = population_statistics(model, images)
    assert list(found) == ["conv1", "conv2", "hidden1"]

    seen = {"conv1": [], "hidden1": []}
    model.eval()
    for batch in images:
        x = batch
        for name, layer in model.layers.named_children():
            if name == "flatten":
                x = x.flatten(1)
                continue
            x = layer.linear(x).detach()
            if name in seen:
                seen[name].append(x.transpose(0, 1).flatten(1).numpy())
            dims = [0, 2, 3][: x.dim() - 1]
            bn, view = layer.normalization, [1, -1, 1, 1][: x.dim()]
            x_hat = (x - x.mean(dims, keepdim=True)) / torch.sqrt(
                x.var(dims, correction=0, keepdim=True) + bn.eps
            )
            x = layer.nonlinearity(bn.weight.view(view) * x_hat + bn.bias.view(view))
            x = layer.pool(x) if hasattr(layer, "pool") else x
    for name, batches in seen.items():
        m = batches[0].shape[1]
        assert m == {"conv1": 8 * 10 * 10, "hidden1": 8}[name]  # m' = m·p·q (Section 3.2)
        mean = np.mean([b.mean(1) for b in batches], axis=0)
        variance = m / (m - 1) * np.mean([b.var(1) for b in batches], axis=0)
        np.testing.assert_allclose(found[name].mean, mean, rtol=1e-10)
        np.testing.assert_allclose(found[name].variance, variance, rtol=1e-10)


@pytest.mark.parametrize("hidden", [(6,), (1,)])
def test_of_whitening_the_covariance_takes_the_place_of_the_variance(hidden):
    model = network(normalization="whitening", hidden=hidden)
    images = [draw(30, *SHAPE, seed=i) for i in range(4)]
    [found] = population_statistics(model, images).values()
    inputs = [model.layers.hidden1.linear(i.flatten(1)).detach().numpy().T for i in images]
    np.testing.assert_allclose(found.mean, np.mean([i.mean(1) for i in inputs], axis=0))
    covariance = np.mean([np.atleast_2d(np.cov(i)) for i in inputs], axis=0)
    np.testing.assert_allclose(found.variance, covariance, rtol=1e-9)


@pytest.mark.parametrize("kind", OVER_BATCH)
def test_nothing_here_changes_the_model(kind):
    model = network(**CNN, normalization=kind, dropout=0.5)
    before, images = state(model), draw(6, *SHAPE)
    statistics = population_statistics(model, [images])
    fold(with_population(model, statistics))
    alone(model)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    for module in inference.normalizations(model).values():
        assert module.track_running_stats
    generator = model.layers.hidden1.dropout.generator(torch.device("cpu"))
    fresh = torch.Generator().manual_seed(1)
    for _ in range(30):  # of the batches that `network` has seen; nothing was dropped since
        torch.rand(40, 6, generator=fresh, dtype=torch.float32)
    assert generator.get_state().equal(fresh.get_state())


# Folding


@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("kind", OVER_BATCH)
@pytest.mark.parametrize("affine", ["learned", "fixed"])
def test_the_folded_network_is_the_network(model, kind, affine):
    unfolded = network(**model, normalization=kind, bn_affine=affine)
    folded = fold(unfolded)
    assert not any(hasattr(layer, "normalization") for layer in folded.named_layers().values())
    images = draw(50, *SHAPE, seed=9)
    expected = predict(unfolded, images)
    torch.testing.assert_close(predict(folded, images), expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 0.1  # there is something to be equal to
    single = predict(fold(unfolded.float()), images.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_network_without_normalization_is_its_own_folded_one():
    model = network(**CNN, normalization="none")
    images = draw(5, *SHAPE)
    assert torch.equal(predict(fold(model), images), predict(model, images))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bn_placement": "after"}, "conv1 is normalized after its nonlinearity"),
        ({"bn_per": "activation"}, "each activation of conv1 has statistics of its own"),
        ({"normalization": "group", "groups": 1}, "conv1 is normalized by statistics of each"),
    ],
)
def test_what_cannot_be_folded_says_why(settings, sentence):
    with pytest.raises(FoldError, match=sentence):
        fold(network(**CNN, **settings))


# One example at a time


def one_by_one(model, images):
    """Each example through the training network as a batch of one, which torch's own function
    takes where its module refuses."""

    def batch_norm(x, mean, variance, weight, bias, training, momentum, eps):
        return torch.batch_norm(x, weight, bias, None, None, True, 0.0, eps, False)

    with pytest.MonkeyPatch.context() as patched, inference.observing(model, "batch"):
        patched.setattr(F, "batch_norm", batch_norm)
        return torch.cat([model(one) for one in images.split(1)])


@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("kind", [*OVER_BATCH, "per activation"])
@pytest.mark.parametrize("placement", ["before", "after"])
def test_examples_one_at_a_time_are_as_in_a_loop(model, kind, placement):
    form = {"normalization": kind} if kind in OVER_BATCH else {"bn_per": "activation"}
    built = network(**model, **form, bn_placement=placement)
    images = draw(7, *SHAPE, seed=5)
    with torch.no_grad():
        expected = one_by_one(built, images)
        single = alone(built)
        with inference.observing(single, "batch"):
            found = single(images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_fully_connected_unit_alone_is_beta():
    """The variance of one value is 0: every example gets the same logits."""
    model = network(**MLP)
    single = alone(model)
    with torch.no_grad(), inference.observing(single, "batch"):
        logits = single(draw(9, *SHAPE))
    beta = torch.sigmoid(model.layers.hidden2.normalization.bias)
    expected = model.output(beta).expand(9, 10)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


# The table


def trained(digits, **settings):
    trainer = Trainer(small(trace__records=0, training__steps=150, **settings), digits)
    for _ in proceed(trainer):
        pass
    return trainer


def test_the_accuracies_are_those_of_each_network(digits):
    trainer = trained(digits, training__batch_size=30)
    found = inference.accuracies(trainer)
    assert (found.step, found.batches, found.batch_size) == (150, 20, 30)  # an epoch of 600
    assert (found.examples, found.examples_alone, found.test_batch_size) == (200, 200, 30)
    model = trainer.model
    moving = evaluate(model, digits.test_images, digits.test_labels)[1]
    assert found.moving_averages.in_batches == found.moving_averages.alone == moving

    batches = [digits.train_images[trainer.batches[150 + i]] for i in range(20)]
    population = with_population(model, population_statistics(model, batches))
    one_at_a_time = torch.cat([predict(population, i) for i in digits.test_images.split(1)])
    right = (one_at_a_time.argmax(1) == digits.test_labels).double().mean()
    assert found.population_statistics.alone == pytest.approx(float(right))
    assert found.folded == found.population_statistics
    assert 0 < found.logit_difference < 1e-4
    assert found.not_folded == ""

    # The digits in the stated order, 200 = 6 · 30 + 20; the last 20 beside the first 10.
    order = np.random.default_rng(0).permutation(200)
    right = 0
    with torch.no_grad(), inference.observing(model, "batch"):
        for first in range(0, 200, 30):
            chosen = np.take(order, range(first, first + 30), mode="wrap")
            predicted = model(digits.test_images[chosen]).argmax(1)
            right += int((predicted == digits.test_labels[chosen])[: 200 - first].sum())
    assert found.batch_statistics.in_batches == pytest.approx(right / 200)
    # Alone, all get the same class.
    shares = np.bincount(digits.test_labels, minlength=10) / 200
    assert found.batch_statistics.alone in shares
    assert found.batch_statistics.alone < 0.2 < found.population_statistics.alone


def test_minibatches_larger_than_the_test_set_and_what_cannot_be_folded(digits):
    trainer = trained(digits, training__batch_size=300, model__bn_placement="after")
    found = inference.accuracies(trainer)
    assert (found.batches, found.test_batch_size) == (2, 200)
    assert found.folded is None
    assert "hidden1 is normalized after its nonlinearity" in found.not_folded


def test_it_stops_when_it_is_asked_to(digits):
    trainer = trained(digits)
    before, looks = state(trainer.model), iter(range(1000))
    with pytest.raises(Stopped):
        inference.accuracies(trainer, stop=lambda: next(looks) > 15)
    assert next(looks) == 17
    assert all(torch.equal(v, before[name]) for name, v in state(trainer.model).items())
    assert all(module.training for module in trainer.model.modules())


def test_population_statistics_are_of_the_images_as_training_sees_them(digits):
    config = RunConfig().replace({"data.input": "grey", "data.crop_area": 0.5, "model.hidden": [5]})
    trainer = Trainer(config, digits)
    steps = training_batches(trainer)
    assert len(steps) == 10  # an epoch of 600 digits
    first, second, *_ = training_images(trainer, steps)
    assert torch.equal(first, trainer.examples(trainer.batches[0])[0])
    trainer.step = 1
    assert torch.equal(second, trainer.examples(trainer.batches[1])[0])
    assert not torch.equal(second, digits.train_images[trainer.batches[1]])
