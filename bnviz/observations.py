"""From pre-activations to records of their distribution, many steps at once."""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np
import numpy.typing as npt
import torch

from bnviz.percentiles import summarize
from bnviz.probe import PreActivations
from bnviz.records import Percentiles
from bnviz.schema import GRID

WAITING_BYTES = 2**21
"""Of pre-activations that wait to be summarized: enough that what a call costs besides arithmetic
is shared by many steps, little enough to stay in a cache."""


class Observations:
    """Gathers the pre-activations of steps, and makes records of them.

    Args:
        layers: of which they are wanted.
    """

    def __init__(self, layers: Container[str]) -> None:
        self._layers = layers
        self._waiting: list[tuple[int, PreActivations]] = []
        self._bytes = 0

    def add(self, step: int, pre_activations: PreActivations) -> None:
        """Keep what was seen at a step, the same layers and shapes at each."""
        wanted = {n: values for n, values in pre_activations.items() if n in self._layers}
        self._waiting.append((step, wanted))
        self._bytes += sum(values.nbytes for values in wanted.values())

    @property
    def full(self) -> bool:
        """Whether it is time to take the records."""
        return self._bytes >= WAITING_BYTES

    def take(self) -> Iterator[Percentiles]:
        """The records of all steps since the last ones."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        for layer in waiting[0][1] if waiting else ():
            values = [seen[layer] for _, seen in waiting]  # (N, units, …) each
            units = values[0].shape[1]
            mean, std, grid = _summarize(values) if values[0].is_cpu else summarize_there(values)
            for i, (step, _) in enumerate(waiting):
                of_step = slice(i * units, (i + 1) * units)
                yield Percentiles(step, layer, mean[of_step], std[of_step], grid[of_step])


Summary = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating], npt.NDArray[np.floating]]
"""Mean, standard deviation and percentiles: (rows,), (rows,), (rows, len(GRID)), where the rows
are the units of the first step, then of the next."""


def _summarize(values: list[torch.Tensor]) -> Summary:
    units = values[0].shape[1]
    rows = np.empty((len(values) * units, values[0].numel() // units), np.float32)
    for own, value in zip(rows.reshape(len(values), units, -1), values, strict=True):
        by_unit = value.numpy().swapaxes(0, 1)
        own.reshape(by_unit.shape)[:] = by_unit
    return summarize(rows, GRID)


def summarize_there(values: list[torch.Tensor]) -> Summary:
    """The same on the device where the values are. Only the summary leaves it."""
    stacked = torch.stack(values)  # (steps, N, units, …)
    rows = stacked.transpose(1, 2).flatten(2).flatten(0, 1)  # (steps · units, values)
    ordered = rows.sort(dim=1).values  # NaN last, as numpy has it
    position = torch.tensor(GRID, dtype=torch.float64, device=rows.device) / 100
    position *= rows.shape[1] - 1
    below = position.floor().long()
    above = (below + 1).clamp(max=rows.shape[1] - 1)
    low, high = (ordered.index_select(1, ends).double() for ends in (below, above))
    between = low + (high - low) * (position - below)
    # As `bnviz.percentiles` does where values are infinite or missing.
    between = torch.where((position == below) | (low == high), low, between)
    between[ordered[:, -1].isnan()] = torch.nan
    rows = rows.double()
    mean, std = rows.mean(dim=1), rows.std(dim=1, correction=0)
    summary = torch.cat([mean[:, None], std[:, None], between], dim=1).cpu().numpy()
    return summary[:, 0], summary[:, 1], summary[:, 2:]
