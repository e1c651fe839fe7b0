"""What the text around a figure says of its runs: names, shared settings, the probe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from bnviz.config import RunConfig
from bnviz.settings import OVER_BATCH
from bnviz.store import Run

ALWAYS_TOLD = (
    "model.nonlinearity",
    "model.init_std",
    "optimizer.learning_rate",
    "training.batch_size",
    "training.seed",
)
"""Settings that a reader of a figure must know, also where they are the defaults."""

LONGEST_LABEL = 70
"""Characters of a run's name on a figure. With longer ones the legend fills the screen."""


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run on a figure: with or without BN, and what else sets them apart; where
    that is too much for a figure, what the run was called when it was started."""
    flat = [run.config.flat() for run in runs]
    differing = [
        path
        for path in (flat[0] if flat else {})
        if path != "model.normalization" and len({str(values[path]) for values in flat}) > 1
    ]
    names = [
        ", ".join([run.config.label, *(setting(path, values[path]) for path in differing)])
        for run, values in zip(runs, flat, strict=True)
    ]
    if any(len(name) > LONGEST_LABEL for name in names):
        names = _called(runs)
    return [  # equal configurations: the id tells them apart
        f"{name} ({run.run_id[-6:]})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def _called(runs: Sequence[Run]) -> list[str]:
    """The names in the ids of the runs, without their common beginning, and the seeds where these
    differ."""
    words = [
        re.sub(r"-seed\d+$", "", run.run_id[16:].rpartition("-")[0]).split("-") for run in runs
    ]
    columns = zip(*(own[:-1] for own in words), strict=False)
    common = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    names = ["-".join(own[common:]) for own in words]
    seeds = [run.config.training.seed for run in runs]
    if len(set(seeds)) == 1:
        return names
    return [f"{name}, seed {seed}" for name, seed in zip(names, seeds, strict=True)]


def shared_settings(runs: Sequence[Run]) -> str:
    """What these runs have in common: the settings always told, and those not at the default."""
    flat = [run.config.flat() for run in runs]
    defaults = RunConfig().flat()
    settings = [
        setting(path, value)
        for path, value in flat[0].items()
        if path != "model.normalization"
        and (path in ALWAYS_TOLD or value != defaults[path])
        and (path != "model.init_std" or flat[0]["model.initialization"] == "gaussian")
        and all(values[path] == value for values in flat)
    ]
    return ", ".join(settings)


def rate_changes(runs: Sequence[Run]) -> str:
    """Which of these runs had another learning rate from some step on; "" where none had."""
    changes = []
    for run, name in zip(runs, labels(runs), strict=True):
        for step, value in run.rate_changes():
            changes.append(f"{name}: {value:g} from step {step:,} on")
    scheduled = any(run.config.optimizer.schedule != "constant" for run in runs)
    times = " (times its schedule)" if scheduled else ""
    return f"Learning rate{times} changed while training: {'; '.join(changes)}." if changes else ""


def about(runs: Sequence[Run], *, of_percentiles: bool = True) -> str:
    """The text below a figure of these runs."""
    texts = [f"{shared_settings(runs)}.", probe(runs) if of_percentiles else "", rate_changes(runs)]
    return " ".join(filter(None, texts))


def probe(runs: Sequence[Run]) -> str:
    """Over which examples the percentiles of these runs are taken."""
    samples = {_sample(run.config) for run in runs}
    by_batch = [run.config for run in runs if run.config.model.normalization in OVER_BATCH]
    modes = {config.trace.bn_mode for config in by_batch}
    if len(samples) > 1 or len(modes) > 1:
        return "The percentiles of these runs are taken in different ways (see their names)."
    statistics = ""
    if modes:
        own = "batch" in modes
        whose = "that sample's own" if own else "its running"
        others = {config.model.normalization for config in by_batch} - {"batch"}
        what = "normalization" if others else "BN normalizing"
        statistics = f", {what} by {whose} statistics"
        if own and "batch_renorm" in others:
            statistics += " (batch renormalization corrects these by its running ones)"
    return f"Percentiles over {samples.pop()}{statistics}."


def _sample(config: RunConfig) -> str:
    if config.trace.probe == "minibatch":
        return f"the next minibatch of {config.training.batch_size}, another at each step"
    return f"a fixed sample of {config.trace.probe_size:,} test examples"


def setting(path: str, value: Any) -> str:
    """A value of the configuration in words: "learning rate 0.15"."""
    part, key = path.split(".")
    name = key.replace("_", " ") if key != "kind" else part
    return f"{name} {value_text(value)}"


def value_text(value: Any) -> str:
    return str(value if isinstance(value, int | float | str) else list(value))
