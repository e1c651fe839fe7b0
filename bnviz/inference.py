"""Inference as the paper defines it (Section 3.1, Algorithm 2): population statistics instead of
those of a batch, normalization folded into the weights, and what either is worth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnviz.accuracies import Accuracies, Inference
from bnviz.evaluation import EVALUATION_CHUNK, Stopped, score
from bnviz.models import Network
from bnviz.models.normalization import BatchRenorm, PerActivation, Whitening
from bnviz.probe import observing
from bnviz.trainer import PROBE_SEED, Trainer

BATCHES = 200
"""Minibatches of the population statistics, but no more than an epoch has. Of 60 examples they are
12,000, whose mean varies a hundred times less than theirs."""

ALONE_CHUNK = 100
"""Examples taken one at a time between two looks at whether to stop."""

ALONE_SLOWLY = 1_000
"""Examples that are taken one at a time where a normalization has to compute each by itself."""

Normalization = _BatchNorm | Whitening


class FoldError(ValueError):
    """A normalization that no linear map can absorb; the message says why."""


@dataclass(frozen=True)
class Population:
    """Statistics of the input of a normalization over the training set (Algorithm 2), float64."""

    mean: torch.Tensor  # (units,)
    variance: torch.Tensor  # (units,); of whitening the covariance, (units, units). Unbiased


def normalizations(model: Network) -> dict[str, Normalization]:
    """The normalizations with the statistics of a batch, by the name of their layer."""
    found = {name: getattr(m, "normalization", None) for name, m in model.named_layers().items()}
    return {name: m for name, m in found.items() if isinstance(m, _BatchNorm | Whitening)}


def training_batches(trainer: Trainer) -> list[int]:
    """Steps of the minibatches of the population statistics: those that would come next."""
    size = trainer.batches.batch_size
    count = min(BATCHES, -(-trainer.data.train_count // size))
    return [trainer.step + i for i in range(count)]


def training_images(trainer: Trainer, steps: Iterable[int]) -> Iterator[torch.Tensor]:
    """The images of these steps as training sees them, (batch_size, channels, height, width)."""
    for step in steps:
        yield trainer.examples(trainer.batches[step], step)[0]


@torch.no_grad()
def population_statistics(model: Network, batches: Iterable[torch.Tensor]) -> dict[str, Population]:
    """E[x] = E_B[μ_B] and Var[x] = m/(m−1) · E_B[σ²_B] of each normalized layer (Algorithm 2).

    μ_B and σ²_B are what the training network sees, so each layer's input comes from layers that
    normalize by the same batch; nothing is dropped. Of a feature map, m′ = m·p·q values are in the
    place of m (Section 3.2). The model stays as it is.

    Args:
        batches: at least one, each of images (m, channels, height, width), m at least 2.
    """
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for name, module in normalizations(model).items():

        def add(module: nn.Module, args: tuple[torch.Tensor], name: str = name) -> None:
            assert isinstance(module, _BatchNorm | Whitening)
            values = _values(module, args[0])  # (m, units, p·q)
            variance, mean = torch.var_mean(values, (0, 2))  # unbiased
            if isinstance(module, Whitening):
                variance = torch.cov(values.transpose(0, 1).flatten(1)).view(len(mean), -1)
            total = seen.setdefault(name, [torch.zeros_like(v).double() for v in (mean, variance)])
            total[0] += mean
            total[1] += variance

        hooks.append(module.register_forward_pre_hook(add))
    count = 0
    try:
        with observing(model, "batch"):
            for images in batches:
                model(images)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    return {n: Population(mean / count, variance / count) for n, (mean, variance) in seen.items()}


@torch.no_grad()
def with_population(model: Network, statistics: dict[str, Population]) -> Network:
    """A copy whose normalizations have these statistics in the place of their moving averages."""
    model = copy.deepcopy(model)
    for name, module in normalizations(model).items():
        _running_variance(module).copy_(statistics[name].variance)
        assert module.running_mean is not None
        module.running_mean.copy_(statistics[name].mean)
    return model


@torch.no_grad()
def fold(model: Network) -> Network:
    """A copy in which the linear maps absorb the normalizations (Algorithm 2, step 11).

    With y = γ/√(Var[x] + ε) · x + (β − γ E[x]/√(Var[x] + ε)) and x = Wu, W becomes the factor times
    W, and the second term the bias. Of whitening the factor is the matrix γ (Cov[x] + εI)^(−1/2).

    Raises:
        FoldError: the model has a normalization that cannot be folded.
    """
    model = copy.deepcopy(model)
    for name, layer in model.named_layers().items():
        module = getattr(layer, "normalization", None)
        if module is None:
            continue
        linear = getattr(layer, "linear", None)
        assert isinstance(linear, nn.Linear | nn.Conv2d)
        if not isinstance(module, _BatchNorm | Whitening):
            raise FoldError(
                f"{name} is normalized by statistics of each example, which no fixed linear map "
                "can absorb"
            )
        if isinstance(module, PerActivation):
            raise FoldError(
                f"each activation of {name} has statistics of its own, and a convolution has the "
                "same weights at all locations; choose model.bn_per = feature_map"
            )
        if list(layer._modules).index("normalization") != 1:  # right behind the linear map
            raise FoldError(
                f"{name} is normalized after its nonlinearity, so it is not a linear map that is "
                "normalized; choose model.bn_placement = before"
            )
        factor, offset = affine(module)
        weight, bias = linear.weight.double(), linear.bias
        if bias is not None:  # without one where β is in its place (Section 3.2)
            offset += factor @ bias.double() if factor.dim() == 2 else factor * bias.double()
        if factor.dim() == 2:
            weight = torch.einsum("ij,j...->i...", factor, weight)
        else:
            weight = weight * factor.view(-1, *[1] * (weight.dim() - 1))
        linear.weight.copy_(weight)
        linear.bias = nn.Parameter(offset.to(linear.weight.dtype))
        del layer.normalization
    return model


@torch.no_grad()
def affine(module: Normalization) -> tuple[torch.Tensor, torch.Tensor]:
    """What a normalization by running statistics is: y = factor · x + offset, float64. The factor
    is (units,), of whitening a matrix (units, units); the offset is (units,)."""
    assert module.running_mean is not None
    mean = module.running_mean.double()
    gamma = torch.ones_like(mean) if module.weight is None else module.weight.double()
    beta = torch.zeros_like(mean) if module.bias is None else module.bias.double()
    if isinstance(module, Whitening):
        matrix = gamma[:, None] * module.root(module.running_covariance.double())
        return matrix, beta - matrix @ mean
    factor = gamma / torch.sqrt(_running_variance(module).double() + module.eps)
    return factor, beta - factor * mean


def alone(model: Network) -> Network:
    """A copy that normalizes each example by its own statistics, as the training network does to a
    batch of one. (torch refuses such a batch where a unit has one value.)"""
    model = copy.deepcopy(model)
    for name, module in normalizations(model).items():
        setattr(model.named_layers()[name], "normalization", Alone(module))  # noqa: B010
    return model


class Alone(nn.Module):
    """A normalization that takes each example as a batch of its own (Algorithm 1).

    A feature map has p·q values. A fully connected unit has one, which is the mean, so x̂ = 0 and
    y = β whatever x is.
    """

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        module = self.normalization
        if isinstance(module, BatchRenorm | Whitening):  # which take one example as it is
            return torch.cat([module(one) for one in x.split(1)])
        values = _values(module, x)  # (N, units, p·q)
        centred = values - values.mean(2, keepdim=True)
        variance = centred.square().mean(2, keepdim=True)
        y = centred / torch.sqrt(variance + module.eps)
        if module.affine:
            y = y * module.weight[:, None] + module.bias[:, None]
        return y.view_as(x)


def accuracies(trainer: Trainer, stop: Callable[[], bool] = lambda: False) -> Inference:
    """How many test examples the network of a training gets right, by what it normalizes with.

    The test examples are in a fixed random order. The last batch is filled up from the first one,
    so that all are of the size of a minibatch, or of all test examples where these are fewer; each
    example counts once. What normalizes by fixed statistics sees each example by itself in any
    batch, so there both accuracies are measured at once.

    Args:
        trainer: of a network with a normalization of `settings.OVER_BATCH`; it stays as it is.
        stop: asked between batches.

    Raises:
        Stopped: `stop` said so.
    """

    def unless_stopped(items: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for item in items:
            if stop():
                raise Stopped
            yield item

    def logits(model: Network, images: torch.Tensor, size: int, mode: str) -> torch.Tensor:
        with torch.no_grad(), observing(model, mode):
            return torch.cat([model(chunk) for chunk in unless_stopped(images.split(size))])

    data, model = trainer.data, trainer.model
    count = len(data.test_images)
    order = torch.from_numpy(np.random.default_rng(PROBE_SEED).permutation(count))
    order = order.to(data.test_images.device)
    images, labels = data.test_images[order], data.test_labels[order]
    slow = any(isinstance(m, BatchRenorm | Whitening) for m in normalizations(model).values())
    count_alone = min(count, ALONE_SLOWLY) if slow else count

    def by_fixed_statistics(model: Network) -> tuple[Accuracies, torch.Tensor]:
        found = logits(model, images, EVALUATION_CHUNK, "running")  # (count, classes)
        of_those_alone = score(found[:count_alone], labels[:count_alone])[1]
        return Accuracies(in_batches=score(found, labels)[1], alone=of_those_alone), found

    size = min(trainer.batches.batch_size, count)
    filled = torch.cat([images, images[: -count % size]])
    in_batches = logits(model, filled, size, "batch")[:count]
    one_by_one = logits(alone(model), images[:count_alone], ALONE_CHUNK, "batch")
    by_batch = Accuracies(
        in_batches=score(in_batches, labels)[1], alone=score(one_by_one, labels[:count_alone])[1]
    )
    batches = training_batches(trainer)
    statistics = population_statistics(model, unless_stopped(training_images(trainer, batches)))
    population = with_population(model, statistics)
    by_population, expected = by_fixed_statistics(population)
    folded, difference, problem = None, None, ""
    try:
        folded, found = by_fixed_statistics(fold(population))
        difference = float((found - expected).abs().max())
    except FoldError as error:
        problem = str(error)
    return Inference(
        step=trainer.step,
        batches=len(batches),
        batch_size=trainer.batches.batch_size,
        test_batch_size=size,
        examples=count,
        examples_alone=count_alone,
        batch_statistics=by_batch,
        moving_averages=by_fixed_statistics(model)[0],
        population_statistics=by_population,
        folded=folded,
        logit_difference=difference,
        not_folded=problem,
    )


def _running_variance(module: Normalization) -> torch.Tensor:
    """(units,); of whitening the covariance, (units, units)."""
    if isinstance(module, Whitening):
        return module.running_covariance
    assert module.running_var is not None
    return module.running_var


def _values(module: Normalization, x: torch.Tensor) -> torch.Tensor:
    """The values of each unit that has statistics of its own: x (N, …) as (N, units, values)."""
    assert module.running_mean is not None
    return x.reshape(len(x), len(module.running_mean), -1)
