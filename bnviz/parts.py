"""The Parquet files of a table that grows.

Parts are immutable, `part-<first>-<last>.parquet`, numbered in the order of writing. Merging
replaces parts by one that carries their whole range in its name, so a reader that meets both
ignores the ones that are covered and never counts a row twice.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bnviz.files import replace_aside
from bnviz.schema import TABLES

SORT_KEYS = {
    "metrics": ["step", "split"],
    "percentiles": ["layer", "unit", "step"],
    "events": ["step"],
    "checks": ["layer", "identity", "step"],
}
"""Order of the rows of a merged file."""

ROW_GROUP_ROWS = 8_192
"""Rows of a row group. Small, so that reading one unit of a merged file touches few of them."""

DAMAGED = (OSError, ValueError, KeyError, pa.ArrowException)
"""What reading a damaged part may raise."""


@dataclass(frozen=True, order=True)
class Part:
    """A Parquet file that holds what was written in the flushes `first` to `last`."""

    first: int
    last: int
    path: Path

    def covers(self, other: Part) -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


def list_parts(folder: Path) -> list[Part]:
    """All parts in order of writing, covered ones included. A folder that is not there has none."""
    pattern = re.compile(r"part-(\d{6,})-(\d{6,})\.parquet")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    matches = [match for name in names if (match := pattern.fullmatch(name))]
    return sorted(Part(int(m[1]), int(m[2]), folder / m[0]) for m in matches)


def live_parts(folder: Path) -> list[Part]:
    """The parts that together hold every row once."""
    parts = list_parts(folder)
    return [part for part in parts if not any(other.covers(part) for other in parts)]


def write_part(folder: Path, first: int, last: int, table: pa.Table) -> None:
    def write(aside: Path) -> None:
        pq.write_table(table, aside, compression="zstd", row_group_size=ROW_GROUP_ROWS)

    replace_aside(folder / f"part-{first:06d}-{last:06d}.parquet", write, durable=True)


def merge_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Merge parts into one sorted file, then delete them.

    A part that cannot be read stays as it is. So does any other that is no part of `parts`: a
    merged file holds all that its name covers, so there is one for each unbroken sequence.
    """
    sequence: list[Part] = []
    tables: list[pa.Table] = []
    for part in parts:
        if sequence and part.first != sequence[-1].last + 1:
            _merge(folder, sequence, tables)
            sequence, tables = [], []
        with contextlib.suppress(*DAMAGED):
            tables.append(read_part(part.path))
            sequence.append(part)
    _merge(folder, sequence, tables)


def _merge(folder: Path, parts: Sequence[Part], tables: Sequence[pa.Table]) -> None:
    if len(parts) < 2:
        return
    keys = [(key, "ascending") for key in SORT_KEYS[folder.name]]
    merged = pa.concat_tables(tables).sort_by(keys)
    write_part(folder, parts[0].first, parts[-1].last, merged)
    for part in parts:
        part.path.unlink(missing_ok=True)


def drop_covered(parts: Sequence[Part]) -> None:
    """Finish merges that were cut: delete parts whose rows are in another, readable one."""
    for part in parts:
        covering = [other for other in parts if other.covers(part)]
        if any(is_readable(other.path) for other in covering):
            part.path.unlink(missing_ok=True)


def is_readable(path: Path) -> bool:
    try:
        read_part(path)
    except DAMAGED:
        return False
    return True


def read_part(path: Path, filters: list[tuple[str, str, Any]] | None = None) -> pa.Table:
    """Raises one of DAMAGED."""
    table = pq.read_table(path, filters=filters, partitioning=None)
    return table.cast(TABLES[path.parent.name])
