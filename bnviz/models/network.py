"""Networks, the paper's for MNIST, and a small one with convolutions."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn

from bnviz.models.layers import Dropout, Layer, initialize, make_layer
from bnviz.settings import ModelConfig

POOL = 2
"""Height and width of max pooling after each convolution."""


class Network(nn.Module):
    """Images to logits: `layers`, with all nonlinearities, and the linear `output`."""

    layers: nn.Sequential
    output: nn.Linear

    def named_layers(self) -> dict[str, Layer]:
        """The layers with a nonlinearity by name, from the input on."""
        return {
            path.replace(".", "_"): layer
            for path, layer in self.layers.named_modules()
            if isinstance(layer, Layer)
        }

    def nonlinearities(self) -> dict[str, nn.Module]:
        """The nonlinearity of each layer by name: the modules whose input a probe looks at."""
        return {name: layer.nonlinearity for name, layer in self.named_layers().items()}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # (N, channels, height, width) -> (N, classes) logits
        logits: torch.Tensor = self.output(self.layers(images))
        return logits


class Sequential(Network):
    """784-100-100-100-10 with the default configuration (Section 4.1).

    Layers are named conv1, conv2, …, hidden1, hidden2, … and output. Normalization is in all of
    them but the output.

    Args:
        config: kind, depth, widths, nonlinearity, normalization, initialization.
        shape: of an image, (channels, height, width).
        classes: number of outputs (logits).
        generator: draws the weights. They are drawn layer by layer from the input on, and
            nothing else is drawn, so networks that differ in their normalization start from the
            same weights.
        dropout_seed: of what dropout drops.
    """

    def __init__(
        self,
        config: ModelConfig,
        shape: tuple[int, int, int],
        classes: int,
        generator: torch.Generator,
        dropout_seed: int = 0,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, maps in enumerate(config.channels if config.kind == "cnn" else (), start=1):
            height, width = (side - config.kernel + 1 for side in shape[1:])
            layers[f"conv{i}"] = make_layer(
                nn.Conv2d(shape[0], maps, config.kernel),
                (maps, height, width),
                config,
                pool=nn.MaxPool2d(POOL),
            )
            shape = maps, height // POOL, width // POOL
        layers["flatten"] = nn.Flatten()
        inputs = math.prod(shape)
        for i, units in enumerate(config.hidden, start=1):
            dropout = Dropout(config.dropout, dropout_seed + i) if config.dropout else None
            layers[f"hidden{i}"] = make_layer(
                nn.Linear(inputs, units), (units,), config, dropout=dropout
            )
            inputs = units
        self.layers = nn.Sequential(layers)
        self.output = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                initialize(module.weight, config, generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
