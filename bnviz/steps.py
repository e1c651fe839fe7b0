"""One update on one minibatch, and what updates: gradients and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from bnviz.config import RunConfig
from bnviz.models import Layer, Network
from bnviz.probe import PreActivations, Probe
from bnviz.settings import OptimizerConfig
from bnviz.together import written_out

aten = torch.ops.aten

BACKWARD: dict[type[nn.Module], Callable[[nn.Module, torch.Tensor, Any, Any], torch.Tensor]] = {
    nn.Sigmoid: lambda module, d, x, y: aten.sigmoid_backward.default(d, y),
    nn.Tanh: lambda module, d, x, y: aten.tanh_backward.default(d, y),
    nn.ReLU: lambda module, d, x, y: aten.threshold_backward.default(d, y, 0),
    nn.LeakyReLU: lambda module, d, x, y: aten.leaky_relu_backward.default(
        d, x, module.negative_slope, False
    ),
    nn.ELU: lambda module, d, x, y: aten.elu_backward.default(d, module.alpha, 1, 1, False, x),
}
"""Of y = g(x): the gradient by x from the one by y. These are what autograd calls."""


class Step(Protocol):
    """An update on one minibatch."""

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, seen: PreActivations | None = None
    ) -> torch.Tensor:
        """Update on images (m, channels, height, width) with labels (m,).

        Args:
            seen: filled with the pre-activations of this very pass.

        Returns:
            the mean loss before the update, ().
        """


def make_step(model: Network, optimizer: torch.optim.Optimizer, config: RunConfig) -> Step:
    """The fastest way to train this network; all give the same numbers."""
    if written_out(config):
        return WrittenOutStep(model, optimizer)
    return AutogradStep(model, optimizer, mixed=config.training.precision == "mixed")


class AutogradStep:
    """An update of any network.

    Args:
        mixed: convolutions and matrix products are in bfloat16, whose range is that of float32, so
            losses need no scale.
    """

    def __init__(
        self, model: Network, optimizer: torch.optim.Optimizer, *, mixed: bool = False
    ) -> None:
        self._mixed = mixed
        self._model = model
        self._optimizer = optimizer
        self._nonlinearities = model.nonlinearities()

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, seen: PreActivations | None = None
    ) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._mixed):
            if seen is None:
                logits = self._model(images)
            else:
                with Probe(self._nonlinearities) as probe:
                    logits = self._model(images)
                    seen.update(probe.captured)
        loss = F.cross_entropy(logits.float(), labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class WrittenOutStep:
    """An update of a fully connected network, with its gradients written out (the chain rule of
    the paper's Section 3).

    A small network is done with its arithmetic so soon that autograd's bookkeeping takes as long.
    The operations are those that autograd calls, so the numbers are the same, on a CPU to the bit.
    """

    def __init__(self, model: Network, optimizer: torch.optim.Optimizer) -> None:
        self._update = make_update(optimizer)
        self._layers = [
            (name, _Linear(layer.linear), _normalization(layer), layer.nonlinearity)
            for name, layer in model.named_layers().items()
        ]
        self._output = _Linear(model.output)
        device = model.output.weight.device
        # One count for all normalizations, as all see each batch.
        self._batches_tracked = share_count(
            model, torch.zeros((), dtype=torch.int64, device=device)
        )
        self._one = torch.ones((), device=device)

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, seen: PreActivations | None = None
    ) -> torch.Tensor:
        self._batches_tracked += 1
        h = images.flatten(1)  # (m, inputs)
        passed = []
        for name, linear, normalization, nonlinearity in self._layers:
            x = linear.forward(h)  # (m, units), as all below
            if normalization is not None:
                x = normalization.forward(x)
            y = nonlinearity(x)
            if seen is not None:
                seen[name] = x
            passed.append((linear, normalization, nonlinearity, x, y))
            h = y
        log_p = torch.log_softmax(self._output.forward(h), 1)  # (m, classes)
        loss, weight = aten.nll_loss_forward.default(log_p, labels, None, 1, -100)

        d = aten.nll_loss_backward.default(self._one, log_p, labels, None, 1, -100, weight)
        # Of the loss by the logits:
        d = aten._log_softmax_backward_data.default(d, log_p, 1, log_p.dtype)
        self._output.backward(d)
        d = torch.mm(d, self._output.weight)
        for linear, normalization, nonlinearity, x, y in reversed(passed):
            d = BACKWARD[type(nonlinearity)](nonlinearity, d, x, y)
            if normalization is not None:
                d = normalization.backward(d)
            linear.backward(d)
            if linear is not passed[0][0]:  # the images need no gradient
                d = torch.mm(d, linear.weight)
        self._update()
        return loss


class _Linear:
    """z = hWᵀ + b, and its gradients."""

    def __init__(self, module: Any) -> None:  # nn.Linear
        self.weight = module.weight.detach()  # the same memory
        self._bias = None if module.bias is None else module.bias.detach()
        self._parameters = module.weight, module.bias
        self._gradient = module.weight.grad = torch.zeros_like(self.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self._inputs = inputs
        return F.linear(inputs, self.weight, self._bias)

    def backward(self, d: torch.Tensor) -> None:
        torch.mm(d.t(), self._inputs, out=self._gradient)
        if self._bias is not None:
            self._parameters[1].grad = d.sum(0)


class _BatchNorm:
    """Algorithm 1 and its gradients, with the operations of torch."""

    def __init__(self, module: Any) -> None:  # nn.BatchNorm1d
        self._parameters = module.weight, module.bias  # None where they are fixed
        self._values = [None if p is None else p.detach() for p in self._parameters]
        self._running = module.running_mean, module.running_var
        self._momentum, self._epsilon = module.momentum, module.eps
        learned = module.affine
        self._wanted = [True, learned, learned]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self._z = z
        x, *self._statistics = aten.native_batch_norm.default(
            z, *self._values, *self._running, True, self._momentum, self._epsilon
        )
        return x

    def backward(self, d: torch.Tensor) -> torch.Tensor:
        d, by_weight, by_bias = aten.native_batch_norm_backward.default(
            d, self._z, self._values[0], *self._running, *self._statistics,
            True, self._epsilon, self._wanted,
        )  # fmt: skip
        if self._wanted[1]:
            self._parameters[0].grad, self._parameters[1].grad = by_weight, by_bias
        return d


def _normalization(layer: Layer) -> _BatchNorm | None:
    module = getattr(layer, "normalization", None)
    return None if module is None else _BatchNorm(module)


def make_update(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """What applies the gradients. SGD without momentum has no state, so its kernel can be called
    without the rest of `step`, which takes longer than the kernel."""
    if not isinstance(optimizer, torch.optim.SGD) or optimizer.defaults["momentum"]:
        return optimizer.step
    parameters = [group["params"] for group in optimizer.param_groups]
    values = [[parameter.detach() for parameter in group] for group in parameters]

    def update() -> None:
        # `load_state_dict` puts other groups in the place of these.
        for group, own, own_values in zip(optimizer.param_groups, parameters, values, strict=True):
            torch._fused_sgd_(
                own_values, [parameter.grad for parameter in own], [],
                lr=group["lr"], weight_decay=group["weight_decay"], momentum=0.0, dampening=0.0,
                nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip

    return update


def share_count(model: nn.Module, count: torch.Tensor) -> torch.Tensor:
    """Let this be where all of BN in a network counts its batches, from where the count stands."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            count.copy_(module.num_batches_tracked)  # type: ignore[arg-type]
            module.num_batches_tracked = count
    return count


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of a configuration. The L2 penalty is on the weights of linear maps alone."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups: list[dict[str, Any]] = (
        [{"params": weights, "weight_decay": config.l2}, {"params": others, "weight_decay": 0.0}]
        if config.l2
        else [{"params": list(model.parameters())}]
    )
    rate = config.learning_rate
    if config.kind == "adagrad":
        return torch.optim.Adagrad(groups, lr=rate, fused=groups[0]["params"][0].is_cpu)
    if config.kind == "adam":
        return torch.optim.Adam(groups, lr=rate, fused=True)
    return torch.optim.SGD(
        groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov, fused=True
    )
