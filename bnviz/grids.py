"""Grids of settings: every combination of some values, for sweeps."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

MAX_RUNS = 500
"""Of one sweep. More is a typing error rather than an experiment."""

SHORT = {
    "optimizer.learning_rate": "lr",
    "model.init_std": "std",
    "model.nonlinearity": "",
    "model.initialization": "",
    "model.bn_placement": "",
    "model.dropout": "dropout-",
    "optimizer.l2": "l2-",
    "training.batch_size": "batch",
    "training.seed": "seed",
}
"""How a run's name tells a setting; the value alone where the setting is plain from it."""


def combinations(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of dotted paths, the last path changing fastest.

    Raises:
        ValueError: a path without values, a value twice, or more than MAX_RUNS combinations; the
            message is a sentence for people.
    """
    count = 1
    for path, choices in values.items():
        if not choices:
            raise ValueError(f"{path}: give at least one value")
        if len({repr(choice) for choice in choices}) < len(choices):
            raise ValueError(f"{path}: a value is there twice")
        count *= len(choices)
    if count > MAX_RUNS:
        raise ValueError(f"{count:,} runs: a sweep has at most {MAX_RUNS}; give fewer values")
    return [
        dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())
    ]


def run_name(settings: Mapping[str, Any]) -> str:
    """A short name for one combination: `lr0.1-batch-seed1`."""
    words = []
    for path, value in settings.items():
        if path == "model.normalization":
            words.append({"none": "without-bn", "batch": "with-bn"}.get(value, str(value)))
            continue
        text = "x".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"
        words.append(SHORT.get(path, path.rpartition(".")[2].replace("_", "-")) + text)
    return "-".join(words)


def parse_values(text: str) -> list[Any]:
    """Values typed with commas between them, each read as TOML, else taken as text.

    Raises:
        ValueError: none, or an empty one between two commas.
    """
    parts = [part.strip() for part in _split(text)]
    if not all(parts):
        raise ValueError("write values with commas between them, for example 0.01, 0.1, 1")
    return [_value(part) for part in parts]


def _split(text: str) -> list[str]:
    """At the commas that are not within brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text
