"""The paper's Inception as numbers (its Figure 5), and a small twin of it. Builds nothing.

Figure 5 contradicts itself in modules 4c and 4d: the printed branches add up to 608 channels, with
pool projections of 128, and 576 are printed as their sum, for which these would be 96. Either can
be chosen. No reading of the figure has the 13.6 million parameters of Section 4.2: with 576
channels and the separable stem there are 11,188,288, with 608 and a plain stem 11,285,224.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple


class Module(NamedTuple):
    """One row of Figure 5: four branches, whose outputs are concatenated.

    A 1×1 convolution; 1×1 then 3×3; 1×1, 3×3 and 3×3 again; 3×3 pooling then 1×1. Widths are
    feature maps.
    """

    name: str
    one: int
    """0: without this branch, as in the modules of stride 2."""
    three: tuple[int, int]
    """Of the 1×1 that reduces, and of the 3×3."""
    double: tuple[int, int]
    """Of the 1×1 that reduces, and of each 3×3."""
    pool: Literal["average", "max"]
    projection: int
    """Of the 1×1 behind the pooling; 0: what is pooled passes through."""
    stride: int = 1
    """Of the last 3×3 convolution of both branches, and of the pooling."""

    def outputs(self, inputs: int) -> int:
        """Feature maps of this module on an input of so many."""
        return self.one + self.three[1] + self.double[1] + (self.projection or inputs)

    def widths(self) -> Iterator[tuple[str, int]]:
        """The convolutions with their feature maps, branch by branch."""
        if self.one:
            yield "1x1", self.one
        yield "3x3_reduce", self.three[0]
        yield "3x3", self.three[1]
        yield "double_reduce", self.double[0]
        yield "double_1", self.double[1]
        yield "double_2", self.double[1]
        if self.projection:
            yield "projection", self.projection


class Plan(NamedTuple):
    """A whole network: a stem of three convolutions, modules, and the mean over all locations."""

    conv1: int
    """Feature maps of the 7×7 convolution of stride 2."""
    conv2: tuple[int, int]
    """Of the 1×1 that reduces, and of the 3×3."""
    modules: tuple[Module, ...]
    first_pool: bool = True
    """Whether 3×3 max pooling of stride 2 follows the first convolution, as it does the second."""

    def activations(self, side: int) -> int:
        """Numbers that come out of the convolutions for one image of this side, which training
        keeps for the gradients."""
        side = _halved(side)
        total = self.conv1 * side**2
        if self.first_pool:
            side = _halved(side)
        total += sum(self.conv2) * side**2
        side = _halved(side)
        for module in self.modules:
            small = _halved(side) if module.stride == 2 else side
            last = ("3x3", "double_2")
            total += sum(
                width * (small if name in last else side) ** 2 for name, width in module.widths()
            )
            side = small
        return total

    def layers(self) -> dict[str, int]:
        """Every layer with a nonlinearity by name, from the input on, with its feature maps."""
        stem = {"conv1": self.conv1, "conv2_reduce": self.conv2[0], "conv2": self.conv2[1]}
        rest = {f"{m.name}_{name}": width for m in self.modules for name, width in m.widths()}
        return stem | rest


def _halved(side: int) -> int:
    return -(-side // 2)


DEPTH_MULTIPLIER = 8
"""Of the separable first convolution: feature maps of its depthwise part for each colour."""

_FIGURE_5 = (
    Module("3a", 64, (64, 64), (64, 96), "average", 32),
    Module("3b", 64, (64, 96), (64, 96), "average", 64),
    Module("3c", 0, (128, 160), (64, 96), "max", 0, stride=2),
    Module("4a", 224, (64, 96), (96, 128), "average", 128),
    Module("4b", 192, (96, 128), (96, 128), "average", 128),
    Module("4c", 160, (128, 160), (128, 160), "average", 128),
    Module("4d", 96, (128, 192), (160, 192), "average", 128),
    Module("4e", 0, (128, 192), (192, 256), "max", 0, stride=2),
    Module("5a", 352, (192, 320), (160, 224), "average", 128),
    Module("5b", 352, (192, 320), (192, 224), "max", 128),
)
"""As its rows are printed."""

SUMMED = {"4c": 96, "4d": 96}
"""Pool projections with which the channels add up to the printed sums."""

AS_PRINTED = Plan(64, (64, 192), _FIGURE_5)

AS_SUMMED = AS_PRINTED._replace(
    modules=tuple(m._replace(projection=SUMMED.get(m.name, m.projection)) for m in _FIGURE_5)
)

SHRINK = 8
"""The twin has an eighth of the feature maps: its images are an eighth as wide and high."""

_IN_TWIN = ("3a", "3c", "4a", "4e", "5b")
"""One module of each kind at each size: average pooling, stride 2, and max pooling at the end."""


def _shrunk(module: Module) -> Module:
    return module._replace(
        one=module.one // SHRINK,
        three=(module.three[0] // SHRINK, module.three[1] // SHRINK),
        double=(module.double[0] // SHRINK, module.double[1] // SHRINK),
        projection=module.projection // SHRINK,
    )


TWIN = Plan(
    64 // SHRINK,
    (64 // SHRINK, 192 // SHRINK),
    tuple(_shrunk(module) for module in _FIGURE_5 if module.name in _IN_TWIN),
    first_pool=False,
)
"""For images of 28 or 32 pixels: 14² and 7² in the stem, then modules at 7², 4² and 2²."""

LEAST_SIDE, LEAST_SIDE_OF_TWIN = 64, 17
"""Pixels of an image that leave at least two locations a side in the last modules."""


def plan(kind: str, channels: str) -> Plan:
    """The plan of `ModelConfig.kind` "inception" or "small_inception".

    Args:
        channels: `ModelConfig.inception_channels`, "summed" or "printed".
    """
    if kind == "small_inception":
        return TWIN
    return AS_PRINTED if channels == "printed" else AS_SUMMED
