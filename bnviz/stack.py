"""Networks of one architecture as one program: what each has of its own lies in stacked tensors.

A small network leaves a GPU idle while Python and the launches of kernels go on. Stacked, many of
them take as many operations as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

from bnviz.models import Layer, Network
from bnviz.probe import PreActivations
from bnviz.steps import BACKWARD, aten, make_update, share_count

LEARNING = "learning"
"""BN by the statistics of the batch, which go into the running ones. The other modes are those of
`bnviz.probe.observe`."""


class _Passed(NamedTuple):
    """What a layer has made of a batch."""

    name: str
    x: torch.Tensor  # pre-activations, (R, units, m)
    y: torch.Tensor


class Stack:
    """R fully connected networks, whose parameters and running statistics become views of it.

    Activations are (R, units, m), so that to BN the units of all networks are channels of one
    image. Everything is as in `bnviz.steps.WrittenOutStep`, which says more on the gradients.

    Args:
        models: such as `bnviz.together.written_out` allows.
        optimizers: of each, with its own learning rate.
    """

    def __init__(
        self, models: Sequence[Network], optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        self._layers = []
        for name, first in models[0].named_layers().items():
            layers = [model.named_layers()[name] for model in models]
            linear = _Linear([layer.get_submodule("linear") for layer in layers])
            self._layers.append((name, linear, _normalization(layers), first.nonlinearity))
        self._output = _Linear([model.output for model in models])
        self._updates = [make_update(optimizer) for optimizer in optimizers]
        self._batches_tracked = torch.zeros(
            len(models), dtype=torch.int64, device=models[0].output.weight.device
        )
        for model, count in zip(models, self._batches_tracked, strict=True):
            share_count(model, count)

    def update(
        self, images: torch.Tensor, labels: torch.Tensor, seen: PreActivations | None = None
    ) -> torch.Tensor:
        """Update each network.

        Args:
            images: the same for all, (m, channels, height, width), or for each its own, (R, m, …).
            labels: (m,) or (R, m).
            seen: filled with the pre-activations of this very pass, (m, R · units), those of the
                first network first.

        Returns:
            the mean losses before the update, (R,).
        """
        self._batches_tracked += 1
        passed = self._forward(_columns(images, labels.dim()), LEARNING)
        if seen is not None:
            seen.update(_pre_activations(passed))
        log_p = torch.log_softmax(self._output.forward(passed[-1].y), 1)  # (R, classes, m)
        own = labels.expand(len(log_p), -1)[:, None]  # (R, 1, m)
        losses = -log_p.gather(1, own).mean((1, 2))

        d = log_p.exp().sub_(torch.zeros_like(log_p).scatter_(1, own, 1.0)).div_(own.shape[2])
        d = self._output.backward(d)
        for (_, linear, normalization, nonlinearity), (_, x, y) in zip(
            reversed(self._layers), reversed(passed), strict=True
        ):
            d = BACKWARD[type(nonlinearity)](nonlinearity, d, x, y)
            if normalization is not None:
                d = normalization.backward(d)
            d = linear.backward(d, inputs_too=linear is not self._layers[0][1])
        for update in self._updates:
            update()
        return losses

    def observe(self, images: torch.Tensor, bn_mode: str) -> PreActivations:
        """Pre-activations of images, as `bnviz.probe.observe` and in the form of `update`."""
        return _pre_activations(self._forward(_columns(images, images.dim() - 3), bn_mode))

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (R, n, classes) of (n, channels, height, width) images, BN with running
        statistics."""
        passed = self._forward(_columns(images, 1), "running")
        return self._output.forward(passed[-1].y).transpose(1, 2)

    def _forward(self, h: torch.Tensor, bn_mode: str) -> list[_Passed]:
        # Of each layer; h: as `_columns` returns it.
        passed = []
        for name, linear, normalization, nonlinearity in self._layers:
            x = linear.forward(h)
            if normalization is not None:
                x = normalization.forward(x, bn_mode)
            h = nonlinearity(x)
            passed.append(_Passed(name, x, h))
        return passed


def _pre_activations(passed: Sequence[_Passed]) -> PreActivations:
    """(m, R · units) by layer."""
    return {layer.name: layer.x.flatten(0, 1).t() for layer in passed}


def _columns(images: torch.Tensor, leading: int) -> torch.Tensor:
    """(inputs, m) where all networks have the same images, (R, inputs, m) where each its own."""
    return images.flatten(leading).transpose(-1, -2)


class _Linear:
    """z = Wh + b of each network, and its gradients."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        linears = cast(Sequence[nn.Linear], modules)
        self._weight, self._weight_gradient = _stacked([m.weight for m in linears])
        self._bias: torch.Tensor | None = None
        if linears[0].bias is not None:
            self._bias, self._bias_gradient = _stacked([m.bias for m in linears])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # (inputs, m) or (R, inputs, m) -> (R, units, m)
        self._inputs = inputs
        if inputs.dim() == 2:  # one product for all networks
            z = torch.mm(self._weight.flatten(0, 1), inputs).unflatten(0, self._weight.shape[:2])
        else:
            z = torch.bmm(self._weight, inputs)
        return z if self._bias is None else z.add_(self._bias[:, :, None])

    def backward(self, d: torch.Tensor, inputs_too: bool = True) -> torch.Tensor:
        # (R, units, m) -> (R, inputs, m)
        if self._inputs.dim() == 2:
            gradient = self._weight_gradient.flatten(0, 1)
            torch.mm(d.flatten(0, 1), self._inputs.t(), out=gradient)
        else:
            torch.bmm(d, self._inputs.transpose(1, 2), out=self._weight_gradient)
        if self._bias is not None:
            torch.sum(d, 2, out=self._bias_gradient)
        return torch.bmm(self._weight.transpose(1, 2), d) if inputs_too else d


class _BatchNorm:
    """Algorithm 1 and its gradients, of each network."""

    def __init__(self, modules: Sequence[nn.BatchNorm1d]) -> None:
        self._parameters = [(m.weight, m.bias) for m in modules]
        # For all networks in a row, (R · units,).
        self._learned = modules[0].affine
        self._values: list[torch.Tensor | None] = [None, None]
        if self._learned:
            self._values = [
                _stacked([pair[i] for pair in self._parameters])[0].flatten() for i in (0, 1)
            ]
        means, variances = (
            torch.stack([cast(torch.Tensor, getattr(m, name)) for m in modules])
            for name in ("running_mean", "running_var")
        )
        for module, mean, variance in zip(modules, means, variances, strict=True):
            module.running_mean, module.running_var = mean, variance
        self._running = means.flatten(), variances.flatten()
        self._momentum, self._epsilon = modules[0].momentum, modules[0].eps

    def forward(self, z: torch.Tensor, bn_mode: str) -> torch.Tensor:
        # (R, units, m), as all here
        channels = z.reshape(1, -1, z.shape[2])
        running = (None, None) if bn_mode == "batch" else self._running
        x, *statistics = aten.native_batch_norm.default(
            channels, *self._values, *running, bn_mode != "running", self._momentum, self._epsilon
        )
        if bn_mode == LEARNING:
            self._z, self._statistics = channels, statistics
        return x.view_as(z)

    def backward(self, d: torch.Tensor) -> torch.Tensor:
        wanted = [True, self._learned, self._learned]
        by_z, *gradients = aten.native_batch_norm_backward.default(
            d.reshape_as(self._z), self._z, self._values[0], *self._running, *self._statistics,
            True, self._epsilon, wanted,
        )  # fmt: skip
        if self._learned:
            stacked = [g.view(len(self._parameters), -1) for g in gradients]
            for parameters, *own in zip(self._parameters, *stacked, strict=True):
                for parameter, gradient in zip(parameters, own, strict=True):
                    parameter.grad = gradient
        return by_z.view_as(d)


def _normalization(layers: Sequence[Layer]) -> _BatchNorm | None:
    modules = [getattr(layer, "normalization", None) for layer in layers]
    present = [m for m in modules if isinstance(m, nn.BatchNorm1d)]
    return _BatchNorm(present) if present else None


def _stacked(parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of parameters of the same shape, (R, …), and a place for their gradients, of both
    of which they become views."""
    values = torch.stack([p.detach() for p in parameters])
    gradients = torch.zeros_like(values)
    for parameter, value, gradient in zip(parameters, values, gradients, strict=True):
        parameter.data, parameter.grad = value, gradient
    return values, gradients
