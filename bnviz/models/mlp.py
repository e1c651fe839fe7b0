"""The paper's MNIST network: fully connected hidden layers and a linear classifier."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from bnviz.config import ModelConfig

NONLINEARITIES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}


def initialize(weight: torch.Tensor, config: ModelConfig, generator: torch.Generator) -> None:
    """Draw the weights of a layer, (units, inputs), in place.

    Glorot: Glorot & Bengio 2010, variance 2 / (inputs + units). He: He et al. 2015, variance
    2 / inputs. Orthogonal: Saxe et al. 2014.
    """
    if config.initialization == "glorot":
        nn.init.xavier_normal_(weight, generator=generator)
    elif config.initialization == "he":
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    elif config.initialization == "orthogonal":
        nn.init.orthogonal_(weight, generator=generator)
    else:
        nn.init.normal_(weight, std=config.init_std, generator=generator)


class HiddenLayer(nn.Module):
    """One hidden layer: g(BN(Wu)) with batch normalization, g(Wu + b) without (Section 3.2).

    BN stands immediately before the nonlinearity, and the bias is dropped with it because beta
    takes its place. The input of `nonlinearity` is the pre-activation that the probe records.
    """

    def __init__(self, inputs: int, units: int, config: ModelConfig) -> None:
        super().__init__()
        normalized = config.normalization == "batch"
        self.linear = nn.Linear(inputs, units, bias=not normalized)
        self.normalization: nn.Module = (
            nn.BatchNorm1d(units, eps=config.bn_epsilon, momentum=config.bn_momentum)
            if normalized
            else nn.Identity()
        )
        self.nonlinearity = NONLINEARITIES[config.nonlinearity]()

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return self.nonlinearity(self.normalization(self.linear(u)))  # (N, units)


class MLP(nn.Module):
    """784-100-100-100-10 with the default configuration (Section 4.1).

    Layers are named hidden1, hidden2, ... and output. BN is on the hidden layers only.

    Args:
        config: depth, widths, nonlinearity, normalization, initialization.
        inputs: pixels of an image.
        classes: number of outputs (logits).
        generator: draws the weights. They are drawn layer by layer from the input on, and
            nothing else is drawn, so networks with and without BN start from the same weights.
    """

    def __init__(
        self, config: ModelConfig, inputs: int, classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        widths = [inputs, *config.hidden]
        self.layers = nn.Sequential(
            OrderedDict(
                (f"hidden{i}", HiddenLayer(widths[i - 1], widths[i], config))
                for i in range(1, len(widths))
            )
        )
        self.output = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialize(module.weight, config, generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(self.layers(images))  # (N, inputs) -> (N, classes) logits
