"""Which runs can train as one program: those whose configurations differ in numbers alone."""

from __future__ import annotations

import itertools
import json
import math

from bnviz.config import RunConfig

MOST = 64
"""Runs in one program: beyond these, recording them takes longer than training."""

MOST_VALUES = 100_000_000
"""Weights and activations in one program: 400 MB, and some copies. A larger network keeps a GPU
busy by itself."""


def written_out(config: RunConfig) -> bool:
    """Whether the gradients of this network are written out in `bnviz.steps` and `bnviz.stack`."""
    model = config.model
    normalized = model.normalization == "batch" and model.bn_placement == "before"
    return (
        model.kind == "mlp"
        and not model.dropout
        and (normalized or model.normalization == "none")
        and config.training.precision == "float32"
    )


def key(config: RunConfig) -> str | None:
    """The same for configurations that can train as one program, None where one cannot.

    They have the same network, data, steps and records. Their seeds, initial weights and all
    numbers of the optimizer are their own.
    """
    if not written_out(config) or config.data.is_augmented or config.data.is_streamed:
        return None
    own = {
        "optimizer": set(type(config.optimizer).model_fields) - {"kind"},
        "training": {"seed"},
        "model": {"initialization", "init_std"},
    }
    return json.dumps(config.model_dump(mode="json", exclude=own))


def at_most(config: RunConfig) -> int:
    """How many such runs make one program, at least 1."""
    widths = [config.data.pixels, *config.model.hidden]
    weights = sum(map(math.prod, itertools.pairwise(widths)))
    examples = max(config.training.batch_size, config.trace.probe_size)
    return min(MOST, max(1, MOST_VALUES // (weights + examples * sum(widths))))
