"""The networks of the paper."""

from __future__ import annotations

import torch

from bnviz.models.inception import Inception
from bnviz.models.layers import Layer
from bnviz.models.network import Network, Sequential
from bnviz.settings import ModelConfig

__all__ = ["Layer", "Network", "build"]


def build(config: ModelConfig, shape: tuple[int, int, int], classes: int, seed: int) -> Network:
    """The network of a configuration, with the initial weights that its seed determines.

    Args:
        shape: of an image, (channels, height, width).
        classes: number of outputs (logits).
    """
    generator = torch.Generator().manual_seed(seed)
    kind = Inception if config.is_inception else Sequential
    return kind(config, shape, classes, generator, dropout_seed=seed)
