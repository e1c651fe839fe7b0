"""Normalizations of a layer: torch's where it has them, batch renormalization and whitening here.

Those with the statistics of a batch have running statistics for inference, which move by
`momentum` towards each batch's mean and unbiased variance (m/(m−1), Algorithm 2). While a module's
`track_running_stats` is off, they stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnviz.settings import ModelConfig

RENORM_R_MAX, RENORM_D_MAX = 3.0, 5.0
"""Bounds of the corrections of batch renormalization (Ioffe 2017, Section 4)."""

RENORM_BEGIN, RENORM_FULL = 500, 2_500
"""Updates before which batch renormalization is batch normalization, and after which its bounds are
reached; in proportion to 50,000 steps our choice (Ioffe 2017: 5,000, and 25,000 and 40,000)."""


def normalization(
    config: ModelConfig, shape: tuple[int, ...], *, last: bool = False
) -> nn.Module | None:
    """The normalization of a layer's activations, or None where it has none.

    Args:
        shape: of the activations of one example, (units,) or (maps, height, width). A feature map
            has one mean, variance, γ and β (Section 3.2), unless `bn_per` is "activation", or
            "last_activations" and this layer is one of the last.
    """
    units, locations = shape[0], len(shape) == 3
    by_itself = config.bn_per == "activation" or (config.bn_per == "last_activations" and last)
    affine = config.bn_affine == "learned"
    running: dict[str, Any] = {
        "eps": config.bn_epsilon,
        "momentum": config.bn_momentum,
        "affine": affine,
    }
    match config.normalization:
        case "batch" if locations and by_itself:
            return PerActivation(shape, **running)
        case "batch":
            return (
                nn.BatchNorm2d(units, **running) if locations else nn.BatchNorm1d(units, **running)
            )
        case "batch_renorm":
            return BatchRenorm(units, **running)
        case "whitening":
            return Whitening(units, **running)
        case "layer":  # over all of an example's units and locations
            return nn.GroupNorm(1, units, eps=config.bn_epsilon, affine=affine)
        case "group":
            return nn.GroupNorm(config.groups, units, eps=config.bn_epsilon, affine=affine)
        case "instance" if locations:  # a fully connected unit has one value, without variance
            return nn.InstanceNorm2d(units, eps=config.bn_epsilon, affine=affine)
    return None


class PerActivation(nn.BatchNorm1d):
    """Batch normalization of each activation of a feature map by itself (Section 4.2.3).

    Args:
        shape: (maps, height, width).
    """

    def __init__(self, shape: tuple[int, ...], **options: Any) -> None:
        super().__init__(torch.Size(shape).numel(), **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1)).view_as(x)  # (N, maps, height, width)


class BatchRenorm(_BatchNorm):
    """Batch renormalization (Ioffe 2017, Algorithm 1): x̂ = (x − μ_B)/σ_B · r + d.

    r = σ_B/σ and d = (μ_B − μ)/σ, of the running μ and σ, are bounded and have no gradient. Within
    their bounds the training network computes what the network for inference does.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of locations: x is (N, units, …)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        over = [i for i in range(x.dim()) if i != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean, variance = x.mean(over), x.var(over, correction=0)  # (units,)
        deviation = torch.sqrt(variance + self.eps)
        with torch.no_grad():
            running = torch.sqrt(self.running_var + self.eps)
            share = (self.num_batches_tracked - RENORM_BEGIN) / (RENORM_FULL - RENORM_BEGIN)
            share = share.clamp(0, 1)
            r_max, d_max = 1 + share * (RENORM_R_MAX - 1), share * RENORM_D_MAX
            r = torch.clamp(deviation / running, 1 / r_max, r_max)
            d = torch.clamp((mean - self.running_mean) / running, -d_max, d_max)
            if self.track_running_stats:
                m = x.numel() / x.shape[1]
                self.running_mean.lerp_(mean, self.momentum or 0.0)
                self.running_var.lerp_(variance * m / (m - 1), self.momentum or 0.0)
                self.num_batches_tracked += 1
        scale = r / deviation
        y = x * scale.view(shape) + (d - mean * scale).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y


class Whitening(nn.Module):
    """Full whitening: x̂ = Cov[x]^(−1/2) (x − E[x]), jointly over all units (Section 2).

    Mean and covariance are those of the batch, and the gradient goes through both. The paper
    rejects it as costly; with fewer examples than units, Cov[x] + εI is all ε in some directions.

    Args:
        units: components of x, which is (N, units, …).
        eps: added to the diagonal of the covariance.
        momentum: weight of the newest batch in the running statistics.
        affine: learn γ and β of each unit.
    """

    running_mean: torch.Tensor
    running_covariance: torch.Tensor

    def __init__(
        self, units: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.track_running_stats = True
        self.weight = nn.Parameter(torch.ones(units)) if affine else None
        self.bias = nn.Parameter(torch.zeros(units)) if affine else None
        self.register_buffer("running_mean", torch.zeros(units))
        self.register_buffer("running_covariance", torch.eye(units))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = [1, -1] + [1] * (x.dim() - 2)
        if self.training:
            columns = x.transpose(0, 1).flatten(1)  # (units, m)
            mean, m = columns.mean(1), columns.shape[1]
            centred = columns - mean[:, None]
            covariance = centred @ centred.T / m  # (units, units), biased
            if self.track_running_stats:
                with torch.no_grad():
                    self.running_mean.lerp_(mean, self.momentum)
                    self.running_covariance.lerp_(covariance * (m / (m - 1)), self.momentum)
        else:
            mean, covariance = self.running_mean, self.running_covariance
        root = self.root(covariance)
        y = torch.einsum("ij,nj...->ni...", root, x - mean.view(shape))
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y

    def root(self, covariance: torch.Tensor) -> torch.Tensor:
        """(Cov + εI)^(−1/2), (units, units)."""
        root: torch.Tensor = InverseSquareRoot.apply(covariance, self.eps)
        return root


class InverseSquareRoot(torch.autograd.Function):
    """(A + εI)^(−1/2) of a symmetric positive semidefinite matrix, by its eigenvalues.

    The gradient is exact also where eigenvalues meet, at which autograd's own through `eigh` is
    not a number: with f(λ) = λ^(−1/2), (f(λi) − f(λj))/(λi − λj) = −1/(√λi √λj (√λi + √λj))
    (the Daleckii–Krein theorem).
    """

    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor, epsilon: float) -> torch.Tensor:
        if not torch.isfinite(matrix).all():  # a run that diverges; eigh would raise
            return torch.full_like(matrix, torch.nan)
        # In float64: small eigenvalues have the largest part in the result. Below 0 by rounding.
        values, vectors = torch.linalg.eigh(matrix.double())
        roots = (values.clamp(min=0) + epsilon).sqrt()
        ctx.save_for_backward(vectors, roots)
        return ((vectors / roots) @ vectors.T).to(matrix.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        if not ctx.saved_tensors:
            return torch.full_like(gradient, torch.nan), None
        vectors, roots = ctx.saved_tensors
        quotients = -1 / (roots[:, None] * roots * (roots[:, None] + roots))
        symmetric = (gradient + gradient.T).double() / 2
        inner = quotients * (vectors.T @ symmetric @ vectors)
        return (vectors @ inner @ vectors.T).to(gradient.dtype), None
