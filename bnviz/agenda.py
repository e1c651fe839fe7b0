"""At which steps of a run something is recorded."""

from __future__ import annotations

import itertools

from bnviz.config import RunConfig

LOOK_INTERVAL = 100
"""Steps, at least, between looks at all parameters, each of which takes as long as a record."""


class Agenda:
    """What is to be done at which steps of a run, from 0 to the last, both included."""

    def __init__(self, config: RunConfig) -> None:
        self.steps = config.training.steps
        traced = dense_at_start(self.steps, config.trace.records)
        self.traced = set(traced)
        """Where the distributions of the pre-activations are recorded."""
        self.evaluated = set(dense_at_start(self.steps, config.training.evaluations))
        """Where the whole test set is."""
        self.due = self.traced | self.evaluated | {self.steps}
        """Where there is anything to record."""
        self.looks = spaced(traced, LOOK_INTERVAL) | self.evaluated | {self.steps}
        """Where the records so far are taken, and the parameters looked at."""
        stops = sorted(self.due | {0})
        self.longest_gap = max(b - a for a, b in itertools.pairwise(stops))
        """Between two records."""


def dense_at_start(steps: int, count: int) -> list[int]:
    """About `count` steps from 0 to `steps`, both included, closest together at the start.

    The i-th is steps * (i / count)^2: the change is fastest at the start (Figure 1), and the
    square puts about a third of the records into the first tenth of the run while the gap at the
    end is only twice the mean. Fewer than `count` come back where neighbours round to one step.
    None for `count` 0, all for `steps` or more.
    """
    if count >= steps:
        return list(range(steps + 1))
    return sorted({round(steps * (i / count) ** 2) for i in range(count + 1)}) if count else []


def spaced(steps: list[int], gap: int) -> set[int]:
    """Those of ascending steps that follow the one before, among these, by at least `gap`."""
    chosen: list[int] = []
    for step in steps:
        if not chosen or step - chosen[-1] >= gap:
            chosen.append(step)
    return set(chosen)
