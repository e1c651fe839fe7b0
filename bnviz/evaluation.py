"""What a network makes of images that it does not train on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

EVALUATION_CHUNK = 250
"""Test examples a forward pass: activations of this many stay in a CPU's cache."""


class Stopped(RuntimeError):
    """The measurement was to stop before its end."""


def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean loss and accuracy over images (N, channels, height, width), BN with running
    statistics."""
    return score(torch.cat([predict(model, c) for c in images.split(EVALUATION_CHUNK)]), labels)


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (n, classes) of (n, channels, height, width) images, BN with running statistics."""
    was_training = model.training
    model.eval()
    try:
        logits: torch.Tensor = model(images)
    finally:
        model.train(was_training)
    return logits


def score(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean loss and accuracy of (N, classes) logits against labels (N,)."""
    loss = F.cross_entropy(logits, labels)
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    return float(loss), float(accuracy)
