"""Run directories: their files, writing a trace into them and reading it while it grows.

Tables are written as immutable Parquet parts, `part-<first>-<last>.parquet`, numbered in the order
of writing. Merging replaces parts by one that carries their whole range in its name, so a reader
that meets both ignores the ones that are covered and never counts a row twice.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from bnviz.config import ConfigError, RunConfig
from bnviz.schema import GRID_COLUMNS, METRICS, PERCENTILES, SCHEMA_VERSION, TABLES
from bnviz.status import Status

RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9]+(-[a-z0-9]+)*")
SORT_KEYS = {"metrics": ["step", "split"], "percentiles": ["layer", "unit", "step"]}

MERGE_AFTER_PARTS = 64
"""Parts gathered before they are merged. Opening a part costs a reader about 0.3 ms, so this many
stay well under one tick of the page."""

ROW_GROUP_ROWS = 8_192
"""Rows of a row group. Small, so that reading one unit of a merged file touches few of them."""


class StoreError(RuntimeError):
    """A run that cannot be found, read or written; the message says what to do."""


class RunPaths:
    """Every file of a run directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.json"
        self.status = directory / "status.json"
        self.control = directory / "control"
        self.log = directory / "log.txt"

    def table(self, name: str) -> Path:
        return self.directory / name


def default_root() -> Path:
    """$BNVIZ_ROOT, else `./runs`."""
    return Path(os.environ.get("BNVIZ_ROOT") or "runs")


def new_run_id(name: str) -> str:
    """`YYYYMMDD-HHMMSS-<slug>-<hex>` in local time; the hex keeps equal names apart."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "run"
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{secrets.token_hex(3)}"


def run_directory(root: Path, run_id: str) -> Path:
    """The directory of a run. The id is checked before it is joined to a path.

    Raises:
        StoreError: not a run id, or no such run.
    """
    if not RUN_ID.fullmatch(run_id):
        raise StoreError(
            f"{run_id!r} is not a run id; they look like 20260131-235959-figure1-with-bn-1a2b3c "
            "(`python -m bnviz list` shows them)"
        )
    directory = root / run_id
    if not RunPaths(directory).config.is_file():
        raise StoreError(f"there is no run {run_id} in {root}; `python -m bnviz list` shows them")
    return directory


def write_aside(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(aside, path)


def write_config(paths: RunPaths, config: RunConfig) -> None:
    values = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
    write_aside(paths.config, json.dumps(values, indent=2) + "\n")


def _check_schema_version(config_json: str) -> None:
    """Raises ConfigError where a newer bnviz wrote this."""
    try:
        version = json.loads(config_json).get("schema_version", SCHEMA_VERSION)
    except (ValueError, AttributeError):
        return  # whoever parses it says what is wrong
    if version != SCHEMA_VERSION:
        raise ConfigError(
            [f"schema_version = {version!r}: this bnviz reads {SCHEMA_VERSION}; use a newer one"]
        )


def write_status(paths: RunPaths, status: Status) -> None:
    write_aside(paths.status, status.model_dump_json(indent=2) + "\n")


# Parts ------------------------------------------------------------------------------------------


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


def _write_part(folder: Path, first: int, last: int, table: pa.Table) -> None:
    name = f"part-{first:06d}-{last:06d}.parquet"
    aside = folder / f".{name}"
    pq.write_table(table, aside, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    os.replace(aside, folder / name)


def merge_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Merge consecutive parts into one sorted file, then delete them."""
    if len(parts) < 2:
        return
    tables = [pq.read_table(part.path, partitioning=None) for part in parts]
    keys = [(key, "ascending") for key in SORT_KEYS[folder.name]]
    merged = pa.concat_tables(tables).sort_by(keys)
    _write_part(folder, parts[0].first, parts[-1].last, merged)
    for part in parts:
        part.path.unlink(missing_ok=True)


class TraceWriter:
    """Appends rows to a run's tables. What `flush` has returned from survives anything.

    Rows are given as plain values; `bnviz.training` records have the same attribute names.
    """

    def __init__(self, paths: RunPaths) -> None:
        self._folders = {name: paths.table(name) for name in TABLES}
        for folder in self._folders.values():
            folder.mkdir(exist_ok=True)
        self._metrics: list[dict[str, Any]] = []
        self._percentiles: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._unmerged: dict[str, list[Part]] = {name: [] for name in TABLES}
        self._next = dict.fromkeys(TABLES, 1)

    def add_metrics(self, **row: Any) -> None:
        """One row of the metrics table, by column name."""
        self._metrics.append(row)

    def add_percentiles(
        self, step: int, layer: str, mean: np.ndarray, std: np.ndarray, grid: np.ndarray
    ) -> None:
        """All units of a layer at a step: mean and std (units,), grid (units, len(GRID))."""
        values = np.column_stack([mean, std, grid]).astype(np.float32)  # (units, 2 + grid)
        self._percentiles.setdefault(layer, []).append((step, values))

    def flush(self) -> None:
        """Write what was added since the last flush as one part of each table."""
        # Forgotten only when written: where a disk is full, a later flush may succeed.
        if self._metrics:
            self._append("metrics", pa.Table.from_pylist(self._metrics, schema=METRICS))
            self._metrics = []
        if self._percentiles:
            tables = [_layer_table(*item) for item in sorted(self._percentiles.items())]
            self._append("percentiles", pa.concat_tables(tables))
            self._percentiles = {}

    def merge(self) -> None:
        """Merge each table into one file, at the end of a run."""
        self.flush()
        for folder in self._folders.values():
            merge_parts(folder, live_parts(folder))

    def _append(self, name: str, table: pa.Table) -> None:
        folder, number = self._folders[name], self._next[name]
        _write_part(folder, number, number, table)
        self._next[name] = number + 1
        unmerged = self._unmerged[name]
        unmerged.append(Part(number, number, folder / f"part-{number:06d}-{number:06d}.parquet"))
        if len(unmerged) == MERGE_AFTER_PARTS:
            merge_parts(folder, unmerged)
            unmerged.clear()


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


# Reading ----------------------------------------------------------------------------------------


class Run:
    """A run directory, read. Parts never change, so what was read of one is kept.

    Safe to share between threads.
    """

    CACHED_SELECTIONS = 16
    """Selections (such as one unit of one layer) whose rows are kept."""

    def __init__(self, directory: Path) -> None:
        self.paths = RunPaths(directory)
        self.run_id = directory.name
        self.damaged: set[Path] = set()
        """Parts that could not be read; what they held is missing from the tables."""
        self._config: RunConfig | None = None
        self._cache: dict[tuple[Any, ...], dict[Path, pa.Table]] = {}
        self._lock = threading.Lock()

    @property
    def config(self) -> RunConfig:
        """Raises StoreError where config.json is missing or not valid."""
        if self._config is None:
            try:
                text = self.paths.config.read_text(encoding="utf-8")
                _check_schema_version(text)
                self._config = RunConfig.parse_json(text)
            except (OSError, UnicodeDecodeError, ConfigError) as error:
                raise StoreError(f"cannot read {self.paths.config}: {error}") from error
        return self._config

    @property
    def status(self) -> Status:
        """As stored now (see `bnviz.jobs.true_status` for LOST). Raises StoreError."""
        try:
            return Status.model_validate_json(self.paths.status.read_bytes())
        except OSError as error:
            raise StoreError(f"cannot read {self.paths.status}: {error.strerror}") from error
        except ValidationError as error:
            raise StoreError(f"{self.paths.status} is not a status file") from error

    @property
    def layers(self) -> dict[str, int]:
        """Hidden layers by name, from the input on, with their number of units."""
        return self.config.model.layers

    def metrics(self) -> pd.DataFrame:
        """The metrics table, sorted by step."""
        return self._read("metrics", None).to_pandas()

    def percentiles(
        self,
        layer: str | None = None,
        unit: int | None = None,
        steps: Iterable[int] | None = None,
    ) -> pd.DataFrame:
        """Rows of the percentiles table, sorted by layer, unit, step.

        Args:
            layer, unit, steps: keep only these; all where None.

        Raises:
            StoreError: the run has no such layer or unit.
        """
        self.check_unit(layer, unit)
        filters: list[tuple[str, str, Any]] = []
        if layer is not None:
            filters.append(("layer", "=", layer))
        if unit is not None:
            filters.append(("unit", "=", unit))
        if steps is not None:
            filters.append(("step", "in", tuple(sorted(steps))))
        return self._read("percentiles", filters or None).to_pandas()

    def check_unit(self, layer: str | None, unit: int | None) -> None:
        """Raises StoreError, saying what there is, where the run lacks the layer or the unit."""
        if layer is not None and layer not in self.layers:
            raise StoreError(f"no layer {layer!r}; {self.run_id} has {', '.join(self.layers)}")
        most = self.layers[layer] if layer is not None else max(self.layers.values())
        if unit is not None and not 0 <= unit < most:
            raise StoreError(f"no unit {unit}; {layer or self.run_id} has units 0 to {most - 1}")

    def spread_at_start(self, layer: str) -> np.ndarray:
        """p85 - p15 of every unit at step 0, (units,); empty before the first record."""
        first = self.percentiles(layer, steps=[0])
        return (first["p85"] - first["p15"]).to_numpy()

    def version(self) -> tuple[str, ...]:
        """Changes when, and only when, there are other rows to read."""
        return tuple(
            part.path.name for name in TABLES for part in live_parts(self.paths.table(name))
        )

    def _read(self, name: str, filters: list[tuple[str, str, Any]] | None) -> pa.Table:
        folder = self.paths.table(name)
        selection = (name, *(filters or ()))
        with self._lock:
            known = self._cache.pop(selection, {})
            tables: dict[Path, pa.Table] = {}
            vanished: set[Path] = set()
            # A part that is gone was merged since it was listed: its rows are in another, so list
            # again. One that stays in the list and still cannot be opened is damaged.
            complete = False
            while not complete:
                complete = True
                listed = [part.path for part in live_parts(folder)]
                for path in listed:
                    if path in tables or path in vanished:
                        continue
                    try:
                        table = known[path] if path in known else self._read_part(path, filters)
                        tables[path] = table
                    except FileNotFoundError:
                        vanished.add(path)
                        complete = False
            self.damaged |= vanished.intersection(listed)
            tables = {path: tables[path] for path in listed if path in tables}
            self._cache[selection] = tables
            while len(self._cache) > self.CACHED_SELECTIONS:
                self._cache.pop(next(iter(self._cache)))
        if not tables:
            return TABLES[name].empty_table()
        keys = [(key, "ascending") for key in SORT_KEYS[name]]
        return pa.concat_tables(tables.values()).sort_by(keys)

    def _read_part(self, path: Path, filters: list[tuple[str, str, Any]] | None) -> pa.Table:
        schema = TABLES[path.parent.name]
        try:
            return pq.read_table(path, filters=filters, partitioning=None).cast(schema)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, pa.ArrowException):
            self.damaged.add(path)
            return schema.empty_table()


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run directory, wherever it lies.

    Raises:
        StoreError: it is not a run directory.
    """
    directory = Path(path)
    if not RunPaths(directory).config.is_file():
        raise StoreError(f"{directory} is not a run directory: it has no config.json")
    return Run(directory)


def list_run_ids(root: Path) -> list[str]:
    """Ids of the runs in a root, newest first. Anything else in there is passed over."""
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    ids = [n for n in names if RUN_ID.fullmatch(n) and RunPaths(root / n).status.is_file()]
    return sorted(ids, reverse=True)


assert PERCENTILES.names[5:] == list(GRID_COLUMNS)
