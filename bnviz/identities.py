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
with W and once with aW.
"""

from __future__ import annotations

import copy
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
    """Whether the identities are claimed of these networks: with BN immediately after Wu."""
    return config.normalization == "batch" and config.bn_placement == "before"


class Checker:
    """Checks the identities in a network to which they `apply_to`."""

    def __init__(self, model: Network) -> None:
        self._model = model
        self._layers = {name: _LayerChecker(layer) for name, layer in model.named_layers().items()}

    def check(self, images: torch.Tensor, labels: torch.Tensor, step: int = 0) -> list[Check]:
        """Each identity in each layer, now.

        Changes nothing in the network: weights, gradients, running statistics and modes stay as
        they are, no random numbers are drawn, and dropout is off.

        Args:
            images: a minibatch, (N, channels, height, width), of 2 examples at least.
            labels: their classes, (N,).
        """
        with observing(self._model, "batch"):
            hooks = [hook for layer in self._layers.values() for hook in layer.listen()]
            try:
                loss = F.cross_entropy(self._model(images), labels)
            finally:
                for hook in hooks:
                    hook.remove()
        outputs = [layer.output for layer in self._layers.values()]
        gradients = torch.autograd.grad(loss, outputs)
        return [
            Check(step, name, *row)
            for (name, layer), gradient in zip(self._layers.items(), gradients, strict=True)
            for row in layer.check(gradient)
        ]


class _Local(NamedTuple):
    """A layer by itself, with the gradients that ∂ℓ/∂x̂ brings."""

    x_hat: torch.Tensor  # (N, units checked, …)
    by_input: torch.Tensor  # as u
    by_weight: torch.Tensor  # (units, inputs)


class _LayerChecker:
    def __init__(self, layer: Layer) -> None:
        self._linear: Any = layer.get_submodule("linear")
        self._normalization: Any = layer.get_submodule("normalization")
        self._flat = isinstance(self._normalization, PerActivation)
        # Gives x̂ by the statistics of the batch.
        bare: Any = copy.deepcopy(self._normalization).train()
        bare.weight = bare.bias = bare.running_mean = bare.running_var = None
        bare.track_running_stats = False
        self._bare: Any = bare

    def listen(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Keep the layer's input u and output BN(Wu) in the next pass through the network."""

        def keep_input(module: nn.Module, args: tuple[torch.Tensor], _: object) -> None:
            self._input = args[0].detach()  # (N, inputs) or (N, channels, height, width)

        def keep_output(module: nn.Module, _: object, output: torch.Tensor) -> None:
            self.output = output  # (N, units, …)

        return [
            self._linear.register_forward_hook(keep_input),
            self._normalization.register_forward_hook(keep_output),
        ]

    def check(self, gradient: torch.Tensor) -> list[tuple[str, int, int, float, float]]:
        """Identity, units checked and left out, errors without and with ε; after a pass.

        Args:
            gradient: ∂ℓ/∂BN(Wu), as `output`.
        """
        inputs, gradient = self._input.double(), gradient.double()
        del self._input, self.output
        weight = self._linear.weight.detach().double()
        us = [inputs.detach().requires_grad_() for _ in (1, SCALE)]
        weights = [w.requires_grad_() for w in (weight.detach(), SCALE * weight)]
        plain, scaled = (
            F.linear(u, w) if w.dim() == 2 else F.conv2d(u, w)  # without the bias, which BN removes
            for u, w in zip(us, weights, strict=True)
        )
        if self._normalization.weight is not None:  # the gradient by x̂
            gamma = self._normalization.weight.detach().double()
            across = plain.shape[1:] if self._flat else [-1] + [1] * (plain.dim() - 2)
            gradient = gradient * gamma.view(across)
        if self._flat:  # along axis 1 is what has statistics of its own
            plain, scaled, gradient = (x.flatten(1) for x in (plain, scaled, gradient))
        over = [axis for axis in range(plain.dim()) if axis != 1]
        deviation = plain.detach().std(over, correction=0)
        w, largest_input = weight.flatten(1), inputs.abs().amax()
        sizes = w.abs()
        largest = CONSTANT * sizes.sum(1) * largest_input  # |Wu| is at most the sum
        constant = (deviation.view(len(w), -1) <= largest[:, None]).flatten()
        # The largest of the numbers that each unit's gradient by Wu is the sum of.
        terms = (gradient.abs().amax(over) / deviation).masked_fill_(constant, 0)
        term = terms.view(len(w), -1).amax(1)
        least_by_input = CANCELLED * (term * sizes.amax(1)).amax() + TINY
        least_by_weight = CANCELLED * term * largest_input + TINY
        left_out = int(constant.sum())
        units = len(constant) - left_out
        if not units:
            return [(identity, 0, left_out, torch.nan, torch.nan) for identity in IDENTITIES]
        if left_out:
            plain, scaled, gradient = (x[:, ~constant] for x in (plain, scaled, gradient))
        errors = []
        for epsilon in (TINY, self._normalization.eps):
            self._bare.eps = epsilon
            x_hats = [self._bare(x) for x in (plain, scaled)]
            by = torch.autograd.grad(
                x_hats, (*us, *weights), [gradient, gradient], retain_graph=True
            )
            with_w, with_aw = (
                _Local(x_hat.detach(), by_u, by_w.flatten(1))
                for x_hat, by_u, by_w in zip(x_hats, by[:2], by[2:], strict=True)
            )
            errors.append(_errors(with_w, with_aw, w, least_by_input, least_by_weight))
        return [(i, units, left_out, *e) for i, *e in zip(IDENTITIES, *errors, strict=True)]


def _errors(
    plain: _Local,
    scaled: _Local,
    w: torch.Tensor,
    least_by_input: torch.Tensor,
    least_by_weight: torch.Tensor,
) -> list[float]:
    """The errors, in the order of IDENTITIES.

    Args:
        plain, scaled: with W and aW.
        w: W, (units, inputs).
        least_by_input: what the size of a gradient is at least taken to be, ().
        least_by_weight: the same, (units,).
    """
    x_hat, by_input, by_weight = plain
    over = [axis for axis in range(x_hat.dim()) if axis != 1]
    size = torch.maximum(vector_norm(by_weight, dim=1), least_by_weight)
    mean = x_hat.mean(over)
    errors = (
        (scaled.x_hat - x_hat).abs().amax(over) / x_hat.abs().amax(over),
        (scaled.by_input - by_input).abs().amax()
        / torch.maximum(by_input.abs().amax(), least_by_input),
        vector_norm(torch.sub(by_weight, scaled.by_weight, alpha=SCALE), dim=1) / size,
        (w * by_weight).sum(1).abs() / (vector_norm(w, dim=1) * size).clamp(min=TINY),
        mean.abs(),
        (x_hat.square().mean(over) - mean.square() - 1).abs(),
    )
    largest: list[float] = torch.stack([error.amax() for error in errors]).tolist()
    return largest
