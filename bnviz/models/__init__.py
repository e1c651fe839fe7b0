"""The networks of the paper."""

from __future__ import annotations

import torch
from torch import nn

from bnviz.config import ModelConfig
from bnviz.models.mlp import MLP

__all__ = ["MLP", "build"]


def build(config: ModelConfig, inputs: int, classes: int, seed: int) -> nn.Module:
    """The network of a configuration, with the initial weights that its seed determines."""
    generator = torch.Generator().manual_seed(seed)
    return MLP(config, inputs, classes, generator)
