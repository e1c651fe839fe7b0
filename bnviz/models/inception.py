"""The paper's Inception (its Figure 5, and GoogLeNet before it: Szegedy et al. 2014)."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from bnviz.inception import DEPTH_MULTIPLIER, Module, Plan, plan
from bnviz.models.layers import Dropout, initialize, make_layer
from bnviz.models.network import Network
from bnviz.settings import ModelConfig

LRN_SIZE, LRN_ALPHA, LRN_BETA = 5, 1e-4, 0.75
"""Of local response normalization (Krizhevsky et al. 2012), whose constant is 1 as in Caffe, with
which GoogLeNet was reproduced."""

Shape = tuple[int, int, int]
"""Of the activations of one example: feature maps, height, width."""


class Inception(Network):
    """The network of Figure 5, or its twin for small images, down to the logits.

    A separable 7×7 convolution of stride 2, a 1×1 and a 3×3 one, each followed by max pooling; then
    modules of four branches, their mean over all locations, dropout, and the classifier. All
    convolutions and poolings are padded so that with stride 1 they keep the size, with stride 2
    halve it (rounded up). Before each nonlinearity is BN, or in its place a bias.

    Args: as `bnviz.models.network.Sequential`.
    """

    def __init__(
        self,
        config: ModelConfig,
        shape: Shape,
        classes: int,
        generator: torch.Generator,
        dropout_seed: int = 0,
    ) -> None:
        super().__init__()
        chosen = plan(config.kind, config.inception_channels)
        last = chosen.modules[-1].name
        self.layers, shape = _stem(chosen, config, shape)
        for module in chosen.modules:
            block = Block(module, shape, config, last=module.name == last)
            self.layers.add_module(module.name, block)
            shape = block.shape
        self.layers.add_module("mean", nn.AdaptiveAvgPool2d(1))
        self.layers.add_module("flatten", nn.Flatten())
        if config.dropout:
            self.layers.add_module("dropout", Dropout(config.dropout, dropout_seed + 1))
        self.output = nn.Linear(shape[0], classes)
        for linear in self.modules():
            if isinstance(linear, nn.Linear | nn.Conv2d):
                initialize(linear.weight, config, generator)
                if isinstance(linear, nn.Conv2d):
                    linear.weight.data.mul_(config.conv_scale)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)


class Block(nn.Module):
    """One module of Figure 5 on activations of `shape`.

    Args:
        last: it is the last one of the network, the only one whose activations have statistics of
            their own where `model.bn_per` is "last_activations" (Section 4.2.3).
    """

    def __init__(self, module: Module, shape: Shape, config: ModelConfig, *, last: bool) -> None:
        super().__init__()
        channels, height, width = shape
        stride = module.stride
        small = _halved(height, stride), _halved(width, stride)
        self.shape = module.outputs(channels), *small
        """Of the output."""
        widths = dict(module.widths())

        def conv(name: str, inputs: int, kernel: int, stride: int = 1) -> int:
            """Add a convolution with its normalization; returns its feature maps."""
            maps = widths[name]
            own = (maps, *(small if stride > 1 or name == "projection" else (height, width)))
            self.add_module(
                name, make_layer(_conv(inputs, maps, kernel, stride), own, config, last=last)
            )
            return maps

        self.branches: list[tuple[str, ...]] = []
        if module.one:
            conv("1x1", channels, 1)
            self.branches.append(("1x1",))
        conv("3x3", conv("3x3_reduce", channels, 1), 3, stride)
        self.branches.append(("3x3_reduce", "3x3"))
        conv("double_2", conv("double_1", conv("double_reduce", channels, 1), 3), 3, stride)
        self.branches.append(("double_reduce", "double_1", "double_2"))
        # The border has no zeros for an average: it is over what is there.
        self.pool = (
            nn.MaxPool2d(3, stride, padding=1)
            if module.pool == "max"
            else nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        )
        if module.projection:
            conv("projection", channels, 1)
        self.branches.append(("pool", "projection") if module.projection else ("pool",))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = []
        for branch in self.branches:
            y = x
            for name in branch:
                y = self._modules[name](y)  # type: ignore[misc]
            outputs.append(y)
        return torch.cat(outputs, 1)  # (N, maps, height, width)


class ResponseNormalization(nn.Module):
    """Local response normalization: each value over a power of the mean square of its neighbours
    in the LRN_SIZE feature maps around it, itself among them (Krizhevsky et al. 2012).

    As `nn.LocalResponseNorm`, but four times as fast: the sums are a convolution.
    """

    neighbours: torch.Tensor

    def __init__(self, maps: int) -> None:
        super().__init__()
        number = torch.arange(maps)
        near = (number[:, None] - number).abs() <= LRN_SIZE // 2
        weight = near.float()[:, :, None, None] * LRN_ALPHA / LRN_SIZE  # (maps, maps, 1, 1)
        self.register_buffer("neighbours", weight, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + F.conv2d(x.square(), self.neighbours)).pow(-LRN_BETA)


def _stem(plan: Plan, config: ModelConfig, shape: Shape) -> tuple[nn.Sequential, Shape]:
    """What comes before the modules, and the shape of its output."""
    channels, height, width = shape
    parts: OrderedDict[str, nn.Module] = OrderedDict()

    def halve() -> None:
        nonlocal height, width
        height, width = _halved(height), _halved(width)

    def pool(name: str) -> None:
        parts[name] = nn.MaxPool2d(3, 2, padding=1)
        halve()

    halve()
    first = (plan.conv1, height, width)
    if config.stem == "separable":
        between = DEPTH_MULTIPLIER * channels
        parts["depthwise"] = nn.Conv2d(
            channels, between, 7, 2, padding=3, groups=channels, bias=False
        )
        parts["conv1"] = make_layer(_conv(between, plan.conv1, 1), first, config)
    else:
        parts["conv1"] = make_layer(_conv(channels, plan.conv1, 7, 2), first, config)
    if plan.first_pool:
        pool("pool1")
    if config.response_normalization:
        parts["lrn1"] = ResponseNormalization(plan.conv1)
    reduce, maps = plan.conv2
    parts["conv2_reduce"] = make_layer(
        _conv(plan.conv1, reduce, 1), (reduce, height, width), config
    )
    parts["conv2"] = make_layer(_conv(reduce, maps, 3), (maps, height, width), config)
    if config.response_normalization:
        parts["lrn2"] = ResponseNormalization(maps)
    pool("pool2")
    return nn.Sequential(parts), (maps, height, width)


def _conv(inputs: int, maps: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, maps, kernel, stride, padding=kernel // 2)


def _halved(side: int, stride: int = 2) -> int:
    return -(-side // stride)
