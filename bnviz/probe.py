"""Looking at the pre-activations of a network without changing anything in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

PreActivations = dict[str, npt.NDArray[np.float32]]
"""Layer name to its pre-activations, shape (units, examples), examples contiguous."""


class Probe:
    """Captures the input of every nonlinearity during a forward pass.

    Use as a context manager: hooks are there inside `with`, and gone after it whatever happened.

    Args:
        layers: layer name to its nonlinearity.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self._layers = layers
        self._captured: dict[str, torch.Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Probe:
        for name, nonlinearity in self._layers.items():

            def keep(module: nn.Module, args: tuple[torch.Tensor], name: str = name) -> None:
                self._captured[name] = args[0].detach()  # (N, units)

            self._hooks.append(nonlinearity.register_forward_pre_hook(keep))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._captured.clear()

    def take(self) -> PreActivations:
        """What the last forward pass left, unit by unit."""
        return {
            name: values.t().contiguous().cpu().numpy()  # (N, units) -> (units, N)
            for name, values in self._captured.items()
        }


def observe(
    model: nn.Module, layers: dict[str, nn.Module], images: torch.Tensor, bn_mode: str
) -> PreActivations:
    """Pre-activations of `images`, leaving weights, running statistics and modes untouched.

    Args:
        layers: layer name to its nonlinearity.
        images: the probe's examples, (N, inputs).
        bn_mode: "batch", BN normalizes by the statistics of `images`, as the training network
            does (the paper's N_BN^tr); "running", by its running statistics.
    """
    with torch.no_grad(), _observing(model, bn_mode), Probe(layers) as probe:
        model(images)
        return probe.take()


@contextmanager
def _observing(model: nn.Module, bn_mode: str) -> Iterator[None]:
    was_training = {module: module.training for module in model.modules()}
    batch_norms = [m for m in was_training if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [(batch_norm, batch_norm.track_running_stats) for batch_norm in batch_norms]
    model.eval()
    if bn_mode == "batch":
        for batch_norm in batch_norms:
            batch_norm.training = True
            batch_norm.track_running_stats = False  # keeps the running statistics as they are
    try:
        yield
    finally:
        for batch_norm, tracking in tracked:
            batch_norm.track_running_stats = tracking
        for module, training in was_training.items():
            module.training = training
