"""The paper's identities of batch normalization, checked on a network while it trains.

For a = 3, which is no power of two and so not exact in floating point anyway (Section 3.3):

- output: BN((aW)u) = BN(Wu);
- input_gradient: ∂BN((aW)u)/∂u = ∂BN(Wu)/∂u;
- weight_gradient: ∂BN((aW)u)/∂(aW) = 1/a · ∂BN(Wu)/∂W;
- orthogonality: ⟨w, ∂ℓ/∂w⟩ = 0 for the incoming weights w of each unit, which follows from these;
- mean, variance: x̂ has mean 0 and variance 1 over the batch, of a feature map also over its
  locations (Algorithm 1; m′ = m·p·q, Section 3.2).

They hold exactly for ε = 0, and for the run's ε nearly. Both are measured, in float64, on each
layer by itself: with the input u that the network gives it for a minibatch, and in place of whole
Jacobians their product with ∂ℓ/∂x̂, the gradient that the network gives it. So the deviations of
one layer do not reach another, and beside one pass through the network each layer is computed once
with W and once with aW. Of several networks at once, R is their number.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.linalg import vector_norm

from bnviz.models import Layer, Network
from bnviz.models.normalization import PerActivation
from bnviz.probe import observing
from bnviz.schema import IDENTITIES
from bnviz.settings import ModelConfig

SCALE = 3.0
"""The paper's a."""

EXAMPLES = 20
"""Of a minibatch, at most, so that the checks take a small part of the time of an evaluation."""

CONSTANT = 1e-6
"""A unit whose standard deviation over the batch is below this part of the largest value that its
weights allow is constant: rounding would be seen and not the identity."""

CANCELLED = 1e-4
"""Where a gradient by Wu is smaller than this part of the numbers that it is the sum of (with two
examples, BN takes all of it away), its deviation is relative to this part."""

TINY = torch.finfo(torch.float64).tiny
"""Stands for ε = 0, which torch refuses: added to the variance of a unit that is not constant, it
changes no bit."""


@dataclass(frozen=True)
class Check:
    """How far an identity is from holding in a layer at a step.

    `units` were checked and `left_out` are constant over the batch; of a convolution, feature maps,
    or activations where each is normalized by itself. The errors are relative, the largest of the
    units; NaN where none was checked or the network's numbers are not finite.
    """

    step: int
    layer: str
    identity: str
    units: int
    left_out: int
    error: float
    """With ε = 0, where only rounding is left."""
    error_with_epsilon: float
    """With the run's ε: what the network really does."""


def apply_to(config: ModelConfig) -> bool:
    """Whether the identities are claimed of these networks: with BN immediately after Wu. Of the
    large Inception they are not checked, as in float64 that takes longer than training."""
    claimed = config.normalization == "batch" and config.bn_placement == "before"
    return claimed and config.kind != "inception"


def check(
    networks: Sequence[Network],
    examples: Sequence[tuple[torch.Tensor, torch.Tensor]],
    step: int = 0,
) -> list[list[Check]]:
    """Check each identity in each layer of networks of one architecture, now.

    Changes nothing in the networks: weights, gradients, running statistics and modes stay as they
    are, no random numbers are drawn, and dropout is off.

    Args:
        networks: to which the identities `apply_to`.
        examples: for each network a minibatch, images (N, channels, height, width), N at least 2,
            and their classes (N,).

    Returns:
        the checks of each network.
    """
    passes = [_pass(network, *own) for network, own in zip(networks, examples, strict=True)]
    checks: list[list[Check]] = [[] for _ in networks]
    for name in networks[0].named_layers():
        layers = [network.named_layers()[name] for network in networks]
        inputs, gradients = zip(*(own[name] for own in passes), strict=True)
        for own, rows in zip(checks, _check_layer(layers, inputs, gradients), strict=True):
            own += [Check(step, name, *row) for row in rows]
    return checks


def _pass(
    network: Network, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of each layer its input u, (N, inputs) or (N, channels, height, width), and ∂ℓ/∂BN(Wu),
    (N, units, …)."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    hooks = []
    for name, layer in network.named_layers().items():

        def keep_input(
            module: nn.Module, args: tuple[torch.Tensor], _: object, name: str = name
        ) -> None:
            inputs[name] = args[0].detach()

        def keep_output(
            module: nn.Module, _: object, output: torch.Tensor, name: str = name
        ) -> None:
            outputs[name] = output

        hooks.append(layer.get_submodule("linear").register_forward_hook(keep_input))
        hooks.append(layer.get_submodule("normalization").register_forward_hook(keep_output))
    try:
        with observing(network, "batch"):
            loss = F.cross_entropy(network(images), labels)
    finally:
        for hook in hooks:
            hook.remove()
    gradients = torch.autograd.grad(loss, list(outputs.values()))
    return {name: (inputs[name], g) for name, g in zip(outputs, gradients, strict=True)}


class _Local(NamedTuple):
    """A layer by itself, with the gradients that ∂ℓ/∂x̂ brings."""

    x_hat: torch.Tensor  # (R, N, units, …)
    by_input: torch.Tensor  # as u
    by_weight: torch.Tensor  # (R, units, inputs)


def _check_layer(
    layers: Sequence[Layer], inputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> list[list[tuple[str, int, int, float, float]]]:
    """Of each network: identity, units checked and left out, errors without and with ε.

    Args:
        layers: one layer of each network.
        inputs, gradients: as `_pass` returns them.
    """
    normalizations: list[Any] = [layer.get_submodule("normalization") for layer in layers]
    linears: list[Any] = [layer.get_submodule("linear") for layer in layers]
    flat = isinstance(normalizations[0], PerActivation)
    u = torch.stack(list(inputs)).double()  # (R, N, inputs) or (R, N, channels, height, width)
    weight = torch.stack([linear.weight.detach() for linear in linears]).double()
    gradient = torch.stack(list(gradients)).double()
    us = [u.detach().requires_grad_() for _ in (1, SCALE)]
    weights = [w.requires_grad_() for w in (weight.detach(), SCALE * weight)]
    # Without the bias, which BN removes. (R, N, units, …)
    plain, scaled = (_linear(linears[0], own, w) for own, w in zip(us, weights, strict=True))
    if normalizations[0].weight is not None:  # the gradient by x̂
        gamma = torch.stack([n.weight.detach() for n in normalizations]).double()
        across = plain.shape[2:] if flat else [-1] + [1] * (plain.dim() - 3)
        gradient = gradient * gamma.view(len(layers), 1, *across)
    if flat:  # along axis 2 is what has statistics of its own
        plain, scaled, gradient = (x.flatten(2) for x in (plain, scaled, gradient))
    over = [axis for axis in range(plain.dim()) if axis not in (0, 2)]
    deviation = plain.detach().std(over, correction=0)  # (R, units), as what follows
    w = weight.flatten(2)  # (R, units, inputs)
    largest_input = u.abs().flatten(1).amax(1)[:, None]  # (R, 1)
    sizes = w.abs()
    largest = CONSTANT * sizes.sum(2) * largest_input  # |Wu| is at most the sum
    by_map = *w.shape[:2], -1  # activations of a feature map together
    constant = (deviation.view(by_map) <= largest[:, :, None]).flatten(1)
    # The largest of the numbers that each unit's gradient by Wu is the sum of.
    terms = (gradient.abs().amax(over) / deviation).masked_fill_(constant, 0)
    term = terms.view(by_map).amax(2)
    least_by_input = CANCELLED * (term * sizes.amax(2)).amax(1) + TINY  # (R,)
    least_by_weight = CANCELLED * term * largest_input + TINY
    if constant.any():  # such a unit gets other values, which no gradient reaches
        apart = constant.view(len(layers), 1, -1, *[1] * (plain.dim() - 3))
        others = torch.arange(plain.shape[1], dtype=plain.dtype, device=plain.device)
        others = others.view(1, -1, *[1] * (plain.dim() - 2)).expand_as(plain)
        plain, scaled = (torch.where(apart, others, x) for x in (plain, scaled))
        gradient = gradient.masked_fill(apart, 0)
    bare = _without_scale(normalizations[0])
    errors = []
    for epsilon in (TINY, normalizations[0].eps):
        bare.eps = epsilon
        x_hats = [_each(bare, x) for x in (plain, scaled)]
        by = torch.autograd.grad(x_hats, (*us, *weights), [gradient, gradient], retain_graph=True)
        with_w, with_aw = (
            _Local(x_hat.detach(), by_u, by_w.flatten(2))
            for x_hat, by_u, by_w in zip(x_hats, by[:2], by[2:], strict=True)
        )
        errors.append(_errors(with_w, with_aw, w, constant, least_by_input, least_by_weight))
    told = torch.stack([*errors[0], *errors[1]], 1).tolist()  # (R, 2 · identities)
    rows = []
    for left_out, own in zip(constant.sum(1).tolist(), told, strict=True):
        units = constant.shape[1] - left_out
        if not units:
            own = [torch.nan] * len(own)
        pairs = zip(IDENTITIES, own, own[len(IDENTITIES) :], strict=False)
        rows.append([(identity, units, left_out, *pair) for identity, *pair in pairs])
    return rows


def _linear(module: nn.Module, u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """What the linear map of each network, all like `module`, makes of u with w."""
    if isinstance(module, nn.Conv2d):
        stride, padding = module.stride, module.padding
        each = [F.conv2d(*own, None, stride, padding) for own in zip(u, w, strict=True)]
        return torch.stack(each)
    if len(w) > 1:
        return torch.bmm(u, w.mT)
    return F.linear(u[0], w[0])[None]


def _without_scale(normalization: nn.Module) -> Any:
    """Gives x̂ by the statistics of the batch, of any number of units."""
    bare: Any = copy.deepcopy(normalization).train()
    bare.weight = bare.bias = bare.running_mean = bare.running_var = None
    bare.track_running_stats = False
    return bare


def _each(normalization: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of (R, N, units, …), the units of all networks side by side."""
    side_by_side = normalization(x.movedim(0, 1).flatten(1, 2))  # (N, R · units, …)
    normalized: torch.Tensor = side_by_side.unflatten(1, (len(x), -1)).movedim(1, 0)
    return normalized


def _errors(
    plain: _Local,
    scaled: _Local,
    w: torch.Tensor,
    constant: torch.Tensor,
    least_by_input: torch.Tensor,
    least_by_weight: torch.Tensor,
) -> list[torch.Tensor]:
    """The errors of each network, (R,), in the order of IDENTITIES.

    Args:
        plain, scaled: with W and aW.
        w: W, (R, units, inputs).
        constant: what is left out, (R, units), of PerActivation (R, activations).
        least_by_input: what the size of a gradient is at least taken to be, (R,).
        least_by_weight: the same, (R, units).
    """
    x_hat, by_input, by_weight = plain
    over = [axis for axis in range(x_hat.dim()) if axis not in (0, 2)]
    size = torch.maximum(vector_norm(by_weight, dim=2), least_by_weight)
    mean = x_hat.mean(over)
    of_outputs = [
        (scaled.x_hat - x_hat).abs().amax(over) / x_hat.abs().amax(over),
        mean.abs(),
        (x_hat.square().mean(over) - mean.square() - 1).abs(),
    ]
    output, mean_error, variance = (e.masked_fill(constant, 0).amax(1) for e in of_outputs)
    return [
        output,
        (scaled.by_input - by_input).abs().flatten(1).amax(1)
        / torch.maximum(by_input.abs().flatten(1).amax(1), least_by_input),
        (vector_norm(torch.sub(by_weight, scaled.by_weight, alpha=SCALE), dim=2) / size).amax(1),
        ((w * by_weight).sum(2).abs() / (vector_norm(w, dim=2) * size).clamp(min=TINY)).amax(1),
        mean_error,
        variance,
    ]
