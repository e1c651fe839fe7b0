"""Writing the trace of a run: the tables that its worker fills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bnviz.parts import (
    DAMAGED,
    Part,
    drop_covered,
    list_parts,
    live_parts,
    merge_parts,
    read_part,
    write_part,
)
from bnviz.schema import CHECKS, EVENTS, METRICS, PERCENTILES, TABLES
from bnviz.store import RunPaths

ROW_KEYS = {
    "metrics": ["step", "split"],
    "percentiles": ["step", "layer"],
    "events": ["step", "name"],
    "checks": ["step", "layer", "identity"],
}
"""What identifies a record. A continued run meets steps again that it had recorded before it was
cut; their records are there already."""

MERGE_AFTER_PARTS = 64
"""Parts gathered before they are merged. Opening a part costs a reader about 0.3 ms, so this many
stay well under one tick of the page."""

MERGED_BELOW_ROWS = 30_000
"""Parts with more rows wait for the end of the run: opening one is little beside reading it."""


class TraceWriter:
    """Appends rows to a run's tables. What `flush` has returned from survives anything.

    Rows are given as plain values; `bnviz.training` records have the same attribute names.
    """

    def __init__(self, paths: RunPaths, from_step: int = 0) -> None:
        """Begin a trace, or go on with one from `from_step`: records that are there already are
        passed over."""
        self._folders = {name: paths.table(name) for name in TABLES}
        self._metrics: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []
        self._checks: list[dict[str, Any]] = []
        self._percentiles: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._unmerged: dict[str, list[Part]] = {}
        self._next: dict[str, int] = {}
        self._present: dict[str, set[tuple[Any, ...]]] = {}
        for name, folder in self._folders.items():
            folder.mkdir(exist_ok=True)
            for leftover in folder.glob(".part-*"):
                leftover.unlink(missing_ok=True)
            parts, live = list_parts(folder), live_parts(folder)
            drop_covered(parts)
            self._next[name] = max((part.last for part in parts), default=0) + 1
            self._unmerged[name] = [part for part in live if part.first == part.last]
            self._present[name] = _recorded(name, live, from_step)
        self.recorded_to: int = max(
            (key[0] for keys in self._present.values() for key in keys), default=from_step - 1
        )
        """The last step that was recorded before. Up to there a continued run must repeat itself,
        or the rows after `from_step` would tell of a run that never was."""

    def add_metrics(self, **row: Any) -> None:
        """One row of the metrics table, by column name."""
        if (row["step"], row["split"]) not in self._present["metrics"]:
            self._metrics.append(row)

    def add_event(self, **row: Any) -> None:
        """One row of the events table, by column name."""
        if (row["step"], row["name"]) not in self._present["events"]:
            self._events.append(row)

    def add_check(self, **row: Any) -> None:
        """One row of the checks table, by column name."""
        if (row["step"], row["layer"], row["identity"]) not in self._present["checks"]:
            self._checks.append(row)

    def add_percentiles(
        self, step: int, layer: str, mean: np.ndarray, std: np.ndarray, grid: np.ndarray
    ) -> None:
        """All units of a layer at a step: mean and std (units,), grid (units, len(GRID))."""
        if (step, layer) in self._present["percentiles"]:
            return
        values = np.column_stack([mean, std, grid]).astype(np.float32)  # (units, 2 + grid)
        self._percentiles.setdefault(layer, []).append((step, values))

    def flush(self) -> None:
        """Write what was added since the last flush as one part of each table."""
        # Forgotten when written and not before or after: on a full disk a later flush may succeed,
        # and a merge, which needs more space, may fail.
        if self._metrics:
            self._append("metrics", pa.Table.from_pylist(self._metrics, schema=METRICS))
            self._metrics = []
        if self._events:
            self._append("events", pa.Table.from_pylist(self._events, schema=EVENTS))
            self._events = []
        if self._checks:
            self._append("checks", pa.Table.from_pylist(self._checks, schema=CHECKS))
            self._checks = []
        if self._percentiles:
            tables = [_layer_table(*item) for item in sorted(self._percentiles.items())]
            self._append("percentiles", pa.concat_tables(tables))
            self._percentiles = {}
        for name, unmerged in self._unmerged.items():
            if len(unmerged) >= MERGE_AFTER_PARTS:
                merge_parts(self._folders[name], unmerged)
                unmerged.clear()

    def merge(self, alive: Callable[[], object] = lambda: None) -> None:
        """Merge each table into one file, at the end of a run; `alive` as for `merge_parts`."""
        self.flush()
        for folder in self._folders.values():
            merge_parts(folder, live_parts(folder), alive)

    def _append(self, name: str, table: pa.Table) -> None:
        folder, number = self._folders[name], self._next[name]
        write_part(folder, number, number, table)
        self._next[name] = number + 1
        if len(table) < MERGED_BELOW_ROWS:
            path = folder / f"part-{number:06d}-{number:06d}.parquet"
            self._unmerged[name].append(Part(number, number, path))


def _recorded(name: str, parts: Sequence[Part], from_step: int) -> set[tuple[Any, ...]]:
    """Keys of the records from `from_step` on."""
    keys: set[tuple[Any, ...]] = set()
    for part in parts:
        try:
            rows = read_part(part.path, [("step", ">=", from_step)]).select(ROW_KEYS[name])
        except DAMAGED:
            continue
        keys.update(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    return keys


def _layer_table(layer: str, records: list[tuple[int, np.ndarray]]) -> pa.Table:
    steps = np.array([step for step, _ in records], dtype=np.int32)
    values = np.stack([values for _, values in records], axis=1)  # (units, records, columns)
    units, count, columns = values.shape
    arrays = [
        pa.array(np.tile(steps, units)),
        pa.array(np.full(units * count, layer, dtype=object), type=pa.string()),
        pa.array(np.repeat(np.arange(units, dtype=np.int32), count)),
        *(pa.array(values[:, :, column].ravel()) for column in range(columns)),
    ]
    return pa.Table.from_arrays(arrays, schema=PERCENTILES)
