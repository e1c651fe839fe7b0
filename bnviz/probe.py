"""Looking at the pre-activations of a network without changing anything in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

PreActivations = dict[str, torch.Tensor]
"""Layer name to its pre-activations, (N, units, …). A fully connected unit has one value for each
example, a feature map p·q, one for each location (Section 3.2)."""


class Probe:
    """Captures the input of every nonlinearity during a forward pass.

    Use as a context manager: hooks are there inside `with`, and gone after it whatever happened.

    Args:
        layers: layer name to its nonlinearity.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self._layers = layers
        self.captured: PreActivations = {}
        """What the last forward pass left."""
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Probe:
        for name, nonlinearity in self._layers.items():

            def keep(module: nn.Module, args: tuple[torch.Tensor], name: str = name) -> None:
                self.captured[name] = args[0].detach()

            self._hooks.append(nonlinearity.register_forward_pre_hook(keep))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def observe(
    model: nn.Module, layers: dict[str, nn.Module], images: torch.Tensor, bn_mode: str
) -> PreActivations:
    """Pre-activations of `images`, leaving weights, running statistics and modes untouched.

    Args:
        layers: layer name to its nonlinearity.
        images: the probe's examples, (N, channels, height, width).
        bn_mode: "batch", BN normalizes by the statistics of `images`, as the training network
            does (the paper's N_BN^tr); "running", by its running statistics.
    """
    with torch.no_grad(), observing(model, bn_mode), Probe(layers) as probe:
        model(images)
        return probe.captured


@contextmanager
def observing(model: nn.Module, bn_mode: str) -> Iterator[None]:
    """Inside `with`, the model drops nothing, normalizes as `bn_mode` says (see `observe`), and
    learns no statistics; after it, it is as it was."""
    was_training = {module: module.training for module in model.modules()}
    tracked = [m for m in was_training if getattr(m, "track_running_stats", False)]
    model.eval()
    if bn_mode == "batch":
        for normalization in tracked:
            normalization.training = True
            normalization.track_running_stats = False  # type: ignore[assignment]  # they stay
    try:
        yield
    finally:
        for normalization in tracked:
            normalization.track_running_stats = True  # type: ignore[assignment]
        for module, training in was_training.items():
            module.training = training
