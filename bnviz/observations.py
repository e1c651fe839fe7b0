"""From pre-activations to records of their distribution, many steps at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bnviz.percentiles import summarize
from bnviz.probe import PreActivations
from bnviz.records import Percentiles
from bnviz.schema import GRID

WAITING_BYTES = 2**21
"""Of pre-activations that wait to be summarized: enough that what a call costs besides arithmetic
is shared by many steps, little enough to stay in a cache."""


class Observations:
    """Gathers the pre-activations of steps, and makes records of them."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, PreActivations]] = []
        self._bytes = 0

    def add(self, step: int, pre_activations: PreActivations) -> None:
        """Keep what was seen at a step, the same layers and shapes at each."""
        self._waiting.append((step, pre_activations))
        self._bytes += sum(values.nbytes for values in pre_activations.values())

    @property
    def full(self) -> bool:
        """Whether it is time to take the records."""
        return self._bytes >= WAITING_BYTES

    def take(self) -> Iterator[Percentiles]:
        """The records of all steps since the last ones."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        for layer in waiting[0][1] if waiting else ():
            values = [seen[layer].cpu().numpy() for _, seen in waiting]  # (N, units, …) each
            units = values[0].shape[1]
            rows = np.empty((len(values) * units, values[0].size // units), np.float32)
            for own, value in zip(rows.reshape(len(values), units, -1), values, strict=True):
                by_unit = value.swapaxes(0, 1)
                own.reshape(by_unit.shape)[:] = by_unit
            mean, std, grid = summarize(rows, GRID)
            for i, (step, _) in enumerate(waiting):
                of_step = slice(i * units, (i + 1) * units)
                yield Percentiles(step, layer, mean[of_step], std[of_step], grid[of_step])
