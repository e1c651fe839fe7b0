"""Layers: a linear map, its normalization, a nonlinearity; and the initial weights."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from bnviz.models.normalization import normalization
from bnviz.settings import ModelConfig

NONLINEARITIES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}


def initialize(weight: torch.Tensor, config: ModelConfig, generator: torch.Generator) -> None:
    """Draw the weights of a layer, (units, inputs) or (maps, channels, height, width), in place.

    Glorot: Glorot & Bengio 2010, variance 2 / (inputs + units). He: He et al. 2015, variance
    2 / inputs. Orthogonal: Saxe et al. 2014. Of a convolution, the inputs are those of a kernel.
    """
    if config.initialization == "glorot":
        nn.init.xavier_normal_(weight, generator=generator)
    elif config.initialization == "he":
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    elif config.initialization == "orthogonal":
        nn.init.orthogonal_(weight, generator=generator)
    else:
        nn.init.normal_(weight, std=config.init_std, generator=generator)


class Layer(nn.Sequential):
    """g(BN(Wu)) with normalization, g(Wu + b) without (Section 3.2).

    Its modules are `linear`, fully connected or a convolution; `normalization`, where there is
    any, immediately before the nonlinearity or after it; `nonlinearity`, whose input is the
    pre-activation that the probe records; and `pool` and `dropout` where the layer has them.

    Args:
        after: the normalization comes after the nonlinearity.
    """

    nonlinearity: nn.Module

    def __init__(
        self,
        linear: nn.Linear | nn.Conv2d,
        normalization: nn.Module | None,
        nonlinearity: nn.Module,
        *,
        after: bool = False,
        pool: nn.Module | None = None,
        dropout: nn.Module | None = None,
    ) -> None:
        middle = [("normalization", normalization), ("nonlinearity", nonlinearity)]
        modules = [
            ("linear", linear),
            *(reversed(middle) if after else middle),
            ("pool", pool),
            ("dropout", dropout),
        ]
        super().__init__(OrderedDict((name, m) for name, m in modules if m is not None))


def make_layer(
    linear: nn.Linear | nn.Conv2d,
    shape: tuple[int, ...],
    config: ModelConfig,
    *,
    last: bool = False,
    pool: nn.Module | None = None,
    dropout: nn.Module | None = None,
) -> Layer:
    """A layer whose linear map has an output of `shape` for one example, without its bias where a
    normalization before the nonlinearity has a beta in its place.

    Args:
        last: it is one of those that `bn_per` "last_activations" means.
    """
    normalized = normalization(config, shape, last=last)
    after = config.bn_placement == "after"
    if normalized is not None and not after:
        linear.bias = None
    return Layer(
        linear,
        normalized,
        NONLINEARITIES[config.nonlinearity](),
        after=after,
        pool=pool,
        dropout=dropout,
    )


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) with random numbers of its own, so that runs in one process
    do not disturb one another.

    Args:
        share: of the activations that is dropped.
        seed: of the random numbers.
    """

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self.share = share
        self.seed = seed
        self._generator: torch.Generator | None = None

    def generator(self, device: torch.device) -> torch.Generator:
        """The source of its random numbers, whose state a checkpoint needs."""
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return activations
        random = torch.rand(
            activations.shape,
            device=activations.device,
            generator=self.generator(activations.device),
        )
        return activations * (random >= self.share) / (1 - self.share)  # same shape, same mean
