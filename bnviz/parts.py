"""The Parquet files of a table that grows.

Parts are immutable, `part-<first>-<last>.parquet`, numbered in the order of writing. Merging
replaces parts by one that carries their whole range in its name, so a reader that meets both
ignores the ones that are covered and never counts a row twice.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
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
"""Rows of a row group at least. Small, so that reading one unit of a merged file touches little."""

ROW_GROUPS = 256
"""Of a file about at most, as a reader parses what is said of each before it reads any."""

MERGED_AT_ONCE = 1_000_000
"""Rows that are in memory while parts are merged: about 80 MB."""

Filters = list[tuple[str, str, Any]]
"""Conditions on columns, by TESTS, all of which hold of a row that is read. The values for "in"
ascend."""

DAMAGED = (OSError, ValueError, KeyError, pa.ArrowException)
"""What reading a damaged part may raise."""


@dataclass(frozen=True)
class Part:
    """A Parquet file that holds what was written in the flushes `first` to `last`."""

    first: int
    last: int
    path: Path

    def covers(self, other: Part) -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


def list_parts(folder: Path) -> list[Part]:
    """All parts in order of writing, covered ones included. A folder that is not there has none."""
    return sorted(_parts(folder), key=lambda part: (part.first, part.last))


def _parts(folder: Path) -> list[Part]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [part for name in names if (part := _part(folder, name))]


@functools.lru_cache(maxsize=50_000)  # a page lists the same names each second
def _part(folder: Path, name: str) -> Part | None:
    match = re.fullmatch(r"part-(\d{6,})-(\d{6,})\.parquet", name)
    return Part(int(match[1]), int(match[2]), folder / name) if match else None


def live_parts(folder: Path) -> list[Part]:
    """The parts that together hold every row once."""
    live: list[Part] = []
    for part in sorted(_parts(folder), key=lambda part: (part.first, -part.last)):
        if not live or part.last > live[-1].last:  # else that one, which begins before, covers it
            live.append(part)
    return live


def write_part(folder: Path, first: int, last: int, table: pa.Table) -> None:
    _write(folder, Part(first, last, folder / _name(first, last)), [table], len(table))


def _name(first: int, last: int) -> str:
    return f"part-{first:06d}-{last:06d}.parquet"


def _write(folder: Path, part: Part, tables: Iterable[pa.Table], rows: int) -> None:
    schema = TABLES[folder.name]
    texts = [field.name for field in schema if field.type == pa.string()]

    def write(aside: Path) -> None:
        # No dictionaries for numbers: they hardly repeat, so that took most of the time.
        with pq.ParquetWriter(aside, schema, compression="zstd", use_dictionary=texts) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(ROW_GROUP_ROWS, rows // ROW_GROUPS))

    replace_aside(part.path, write, durable=True)


def merge_parts(
    folder: Path, parts: Sequence[Part], alive: Callable[[], object] = lambda: None
) -> None:
    """Merge parts into one sorted file, then delete them.

    A part that cannot be read stays as it is. So does any other that is no part of `parts`: a
    merged file holds all that its name covers, so there is one for each unbroken sequence.

    Args:
        alive: called every few seconds at least; millions of rows take half a minute.
    """
    sequence: list[Part] = []
    for part in parts:
        if sequence and part.first != sequence[-1].last + 1:
            _merge(folder, sequence, alive)
            sequence = []
        if is_readable(part.path):
            sequence.append(part)
        alive()
    _merge(folder, sequence, alive)


def _merge(folder: Path, parts: Sequence[Part], alive: Callable[[], object]) -> None:
    if len(parts) < 2:
        return
    first, last = parts[0].first, parts[-1].last
    rows = sum(pq.read_metadata(part.path).num_rows for part in parts)

    def tables() -> Iterator[pa.Table]:
        for share in _shares(folder.name, parts, rows):
            yield in_order(folder.name, [read_part(part.path, share) for part in parts])
            alive()

    _write(folder, Part(first, last, folder / _name(first, last)), tables(), rows)
    for part in parts:
        part.path.unlink(missing_ok=True)


def _shares(name: str, parts: Sequence[Part], rows: int) -> Iterator[Filters | None]:
    """Filters that take the rows of these parts in their order, few enough of them at once."""
    if name != "percentiles" or rows <= MERGED_AT_ONCE:
        yield None
        return
    units: dict[str, int] = {}  # of each layer
    for part in parts:
        for layer, unit in _last_units(part.path):
            units[layer] = max(units.get(layer, 0), unit + 1)
    at_once = max(1, MERGED_AT_ONCE * sum(units.values()) // rows)
    for layer, count in sorted(units.items()):
        for start in range(0, count, at_once):
            stop = start + at_once
            yield [("layer", "=", layer), ("unit", ">=", start), ("unit", "<", stop)]


def _last_units(path: Path) -> list[tuple[str, int]]:
    """Each layer and its last unit."""
    units = pq.read_table(path, columns=["layer", "unit"], partitioning=None)
    last = units.group_by("layer").aggregate([("unit", "max")])
    return list(zip(last["layer"].to_pylist(), last["unit_max"].to_pylist(), strict=True))


def in_order(name: str, tables: Sequence[pa.Table]) -> pa.Table:
    """All rows of these, of the table `name`, sorted by its SORT_KEYS."""
    rows = pa.concat_tables(tables).combine_chunks()
    order = np.lexsort([_ranks(rows[key]) for key in reversed(SORT_KEYS[name])])
    return rows if (np.diff(order) == 1).all() else rows.take(order)


def _ranks(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Numbers in the order of the values, (rows,)."""
    if column.type != pa.string():
        return column.to_numpy()
    encoded = column.combine_chunks().dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), dtype=object)
    ranks = np.append(np.argsort(np.argsort(names)), len(names))  # the last for what is missing
    return ranks[encoded.indices.fill_null(len(names)).to_numpy()]


def drop_covered(parts: Sequence[Part]) -> None:
    """Finish merges that were cut: delete parts whose rows are in another, readable one."""
    for part in parts:
        covering = [other for other in parts if other.covers(part)]
        if any(is_readable(other.path) for other in covering):
            part.path.unlink(missing_ok=True)


def is_readable(path: Path) -> bool:
    """Whether all rows can be read, and have what they are sorted by."""
    name = path.parent.name
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group).cast(TABLES[name])
                if any(rows[key].null_count for key in SORT_KEYS[name]):
                    return False
    except DAMAGED:
        return False
    return True


def read_part(path: Path, filters: Filters | None = None) -> pa.Table:
    """Raises one of DAMAGED."""
    # Without pyarrow's datasets, which take several times as long for a small file.
    with pq.ParquetFile(path) as file:
        groups = list(range(file.num_row_groups))
        if filters and len(groups) > 1:
            names = file.schema_arrow.names
            ends = [(names.index(column), test, value) for column, test, value in filters]
            groups = [g for g in groups if _may_hold(file.metadata.row_group(g), ends)]
        table = file.read_row_groups(groups, use_threads=len(groups) > 1)
    table = table.cast(TABLES[path.parent.name])
    if not filters:
        return table
    passed = [TESTS[test](table[column], value) for column, test, value in filters]
    return table.filter(functools.reduce(pc.and_, passed))


TESTS: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "<": pc.less,
    ">=": pc.greater_equal,
    "in": lambda column, values: pc.is_in(column, value_set=pa.array(values, column.type)),
}


def _may_hold(group: pq.RowGroupMetaData, filters: Sequence[tuple[int, str, Any]]) -> bool:
    """Whether a row group may have rows that pass all filters (number of a column, test, value)."""
    for column, test, value in filters:
        ends = group.column(column).statistics
        if ends is None or not ends.has_min_max or value == ():
            continue
        low, high = (value[0], value[-1]) if test == "in" and value else (value, value)
        if (test != "<" and ends.max < low) or (test != ">=" and ends.min > high):
            return False
    return True
