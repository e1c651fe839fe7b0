"""Section 2's example: a bias that grows without bound, as its gradient ignores the normalization.

A layer x = w·u + b is normalized over N training examples, x̂ = x − E[x], and where it is scaled,
too, x̂ = (x − E[x])/√Var[x]. Its loss is ℓ = 1/N · Σ ½(x̂ − t)². Where the gradient takes E[x] and
Var[x] for constants, a step changes b by Δb ∝ −Σ ∂ℓ/∂x̂ (over the deviation where there is one); but
the normalization takes just that away again, so neither output nor loss change, and the next step
is the same. The gradient through the normalization has Σ ∂ℓ/∂x = 0, so b stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

EXAMPLES = 200

CORRELATION = 0.5
"""Of u and t, in the whole; our choice, as are all numbers here (the paper states none)."""


@dataclass(frozen=True)
class Trajectory:
    """What a layer goes through, each (steps + 1,), from before the first step on."""

    bias: Floats
    weight: Floats
    loss: Floats


def examples(seed: int) -> tuple[Floats, Floats]:
    """Inputs u and targets t, (EXAMPLES,). Both have variance 1; u has mean 0, t has mean 1, which
    no normalized output can reach, so that there is always a gradient."""
    random = np.random.default_rng(seed)
    u, noise = random.standard_normal((2, EXAMPLES))
    u = (u - u.mean()) / u.std()
    noise -= noise.mean() + u * (u @ noise) / EXAMPLES
    t = 1 + CORRELATION * u + np.sqrt(1 - CORRELATION**2) * noise / noise.std()
    return u, t


def gradient(
    u: Floats, t: Floats, weight: float, bias: float, *, scaling: bool, through: bool
) -> tuple[float, float, float]:
    """The loss, and its gradient by weight and bias.

    Args:
        u, t: inputs and targets, (N,).
        scaling: the normalization divides by the standard deviation.
        through: the gradient goes through the statistics, else it takes them for constants.
    """
    x = weight * u + bias
    deviation = x.std() if scaling else 1.0
    x_hat = (x - x.mean()) / deviation
    by_x_hat = (x_hat - t) / len(u)
    by_x = by_x_hat
    if through:
        by_x = by_x - by_x.mean()
        if scaling:
            by_x = by_x - x_hat * (x_hat @ by_x_hat) / len(u)
    by_x = by_x / deviation
    return float(np.mean((x_hat - t) ** 2) / 2), float(by_x @ u), float(by_x.sum())


def simulate(
    steps: int, learning_rate: float, seed: int = 0, *, scaling: bool, through: bool
) -> Trajectory:
    """Gradient descent from weight 1 and bias 0.

    In the paper's example, which centres alone, only the bias is learned. A weight is learned where
    there is scaling, which takes its size away as centring takes the bias away.

    Args:
        steps: number of updates.
        scaling, through: as for `gradient`.
    """
    u, t = examples(seed)
    weight, bias = 1.0, 0.0
    rows = []
    for _ in range(steps + 1):
        loss, by_weight, by_bias = gradient(u, t, weight, bias, scaling=scaling, through=through)
        rows.append((bias, weight, loss))
        bias -= learning_rate * by_bias
        if scaling:
            weight -= learning_rate * by_weight
    return Trajectory(*np.array(rows).T)
