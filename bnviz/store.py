"""Run directories: their names, their files, and reading them while they grow."""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pydantic import ValidationError

from bnviz import predictions
from bnviz.accuracies import Inference
from bnviz.config import ConfigError, RunConfig
from bnviz.files import write_aside
from bnviz.parts import DAMAGED, Part, in_order, live_parts, read_part
from bnviz.predictions import Predictions, PredictionsError
from bnviz.schema import GRID_COLUMNS, PERCENTILES, SCHEMA_VERSION, TABLES
from bnviz.status import Status

RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z0-9]+(-[a-z0-9]+)*")


SETTLED_NS = 2_000_000_000
"""Age of a folder's last change from which on another would have another time."""


class StoreError(RuntimeError):
    """A run that cannot be found, read or written; the message says what to do."""


class _Name:
    """A file of a run directory by its name. Its path is made when it is asked for: a page looks at
    thousands of runs, and at one or two files of each."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, paths: RunPaths, owner: type[RunPaths]) -> Path:
        return paths.directory / self._name


class RunPaths:
    """Every file of a run directory."""

    config = _Name("config.json")
    status = _Name("status.json")
    about = _Name("about.json")
    control = _Name("control")
    log = _Name("log.txt")
    checkpoint = _Name("checkpoint.pt")
    inference = _Name("inference.json")
    predictions = _Name("predictions.parquet")
    reserve = _Name(".reserve")

    def __init__(self, directory: Path) -> None:
        self.directory = directory

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
    if directory.is_symlink() or not RunPaths(directory).config.is_file():
        raise StoreError(f"there is no run {run_id} in {root}; `python -m bnviz list` shows them")
    return directory


def write_config(paths: RunPaths, config: RunConfig) -> None:
    values = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
    write_aside(paths.config, json.dumps(values, indent=2) + "\n", durable=True)


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


def write_status(paths: RunPaths, status: Status, *, durable: bool = False) -> None:
    write_aside(paths.status, status.model_dump_json(indent=2) + "\n", durable=durable)


@dataclass(frozen=True)
class _Selection:
    """Some rows of a table: as they were read of each part, and all of them, sorted."""

    parts: dict[Path, pa.Table]
    rows: pd.DataFrame


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
        self._cache: dict[tuple[Any, ...], _Selection] = {}
        self._listed: dict[str, tuple[int, list[Part]]] = {}  # table to its folder's mtime, parts
        self._spreads: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    @property
    def config(self) -> RunConfig:
        """Raises StoreError where config.json is missing or not valid."""
        if self._config is None:
            try:
                text = self.paths.config.read_text(encoding="utf-8")
                _check_schema_version(text)
                self._config = RunConfig.parse_json(text)
            except (OSError, UnicodeDecodeError, ConfigError, RecursionError) as error:
                raise StoreError(f"cannot read {self.paths.config}: {error}") from error
        return self._config

    @property
    def status(self) -> Status:
        """As stored now (see `bnviz.processes.true_status` for LOST). Raises StoreError."""
        try:
            return Status.model_validate_json(self.paths.status.read_bytes())
        except OSError as error:
            raise StoreError(f"cannot read {self.paths.status}: {error.strerror}") from error
        except ValidationError as error:
            raise StoreError(f"{self.paths.status} is not a status file") from error

    def inference(self) -> Inference | None:
        """What is measured when the run is complete; None where that is not there.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            return Inference.model_validate_json(self.paths.inference.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {self.paths.inference}: {error.strerror}") from error
        except ValidationError as error:
            raise StoreError(
                f"{self.paths.inference} is damaged; start the run again for another"
            ) from error

    def predictions(self) -> Predictions | None:
        """Class probabilities of the test examples; None where they are not stored (yet).

        Raises:
            StoreError: the file is damaged.
        """
        try:
            return predictions.read(self.paths.predictions)
        except FileNotFoundError:
            return None
        except PredictionsError as error:
            raise StoreError(
                f"{self.paths.predictions} is damaged; start the run again for another"
            ) from error

    @property
    def layers(self) -> dict[str, int]:
        """The recorded layers by name, from the input on, with their number of units."""
        return self.config.traced_layers

    def metrics(self, split: str | None = None) -> pd.DataFrame:
        """The metrics table, sorted by step; of one split ("train" or "test") where it is given."""
        return self._read("metrics", [("split", "=", split)] if split else None)

    def events(self) -> pd.DataFrame:
        """The events table, sorted by step."""
        return self._read("events", None)

    def rate_changes(self) -> list[tuple[int, float]]:
        """Step and value of each learning rate that was set while the run trained."""
        events = self.events()
        if events.empty:
            return []
        changes = events[events["name"] == "learning_rate"]
        return list(zip(changes["step"].tolist(), changes["value"].tolist(), strict=True))

    def checks(self) -> pd.DataFrame:
        """How far the paper's identities are from holding, sorted by layer, identity, step; no
        rows for a run without BN before its nonlinearities, or of an earlier version."""
        return self._read("checks", None)

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
        return self._read("percentiles", filters or None)

    def grid(self, layer: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """All stored percentiles of a layer: steps (records,), values (records, units, GRID).

        Steps at which not all units were recorded (a part is damaged) are left out.

        Raises:
            StoreError: the run has no such layer.
        """
        table = self.percentiles(layer)
        units = self.layers[layer]
        steps, counts = np.unique(table["step"].to_numpy(), return_counts=True)
        if (counts != units).any():
            table = table[table["step"].isin(steps[counts == units])]
            steps = steps[counts == units]
        values = table[list(GRID_COLUMNS)].to_numpy()  # sorted by unit, then step
        by_unit = values.reshape(units, len(steps), len(GRID_COLUMNS))
        return steps.astype(np.int64), by_unit.swapaxes(0, 1)

    def check_unit(self, layer: str | None, unit: int | None) -> None:
        """Raises StoreError, saying what there is, where the run lacks the layer or the unit."""
        if layer is not None and layer not in self.layers:
            raise StoreError(f"no layer {layer!r}; {self.run_id} has {', '.join(self.layers)}")
        most = self.layers[layer] if layer is not None else max(self.layers.values())
        if unit is not None and not 0 <= unit < most:
            raise StoreError(f"no unit {unit}; {layer or self.run_id} has units 0 to {most - 1}")

    def spread_at_start(self, layer: str) -> np.ndarray:
        """p85 - p15 of every unit at step 0, (units,); empty before the first record."""
        if layer not in self._spreads:
            first = self.percentiles(layer, steps=[0])
            spread = (first["p85"] - first["p15"]).to_numpy()
            if len(spread) < self.layers[layer]:
                return spread
            self._spreads[layer] = spread
        return self._spreads[layer]

    def version(self) -> tuple[str, ...]:
        """Changes when, and only when, there are other rows to read; no two runs share one."""
        parts = (part for name in TABLES for part in self._parts(name))
        return (self.run_id, *(part.path.name for part in parts))

    def _parts(self, name: str) -> list[Part]:
        """The live parts of a table. They are listed again where its folder has changed, or did so
        just now, as it may have changed once more by the same clock."""
        folder = self.paths.table(name)
        try:
            changed = folder.stat().st_mtime_ns
        except OSError:
            return live_parts(folder)
        when, listed = self._listed.get(name, (0, []))
        if when != changed:
            listed = live_parts(folder)
            if abs(time.time_ns() - changed) > SETTLED_NS:
                self._listed[name] = changed, listed
        return listed

    def _read(self, name: str, filters: list[tuple[str, str, Any]] | None) -> pd.DataFrame:
        selection = (name, *(filters or ()))
        with self._lock:
            cached = self._cache.pop(selection, None)
            known = cached.parts if cached else {}
            tables: dict[Path, pa.Table] = {}
            vanished: set[Path] = set()
            # A part that is gone was merged since it was listed: its rows are in another, so list
            # again. One that stays in the list and still cannot be opened is damaged.
            complete = False
            while not complete:
                complete = True
                listed = [part.path for part in self._parts(name)]
                for path in listed:
                    if path in tables or path in vanished:
                        continue
                    try:
                        table = known[path] if path in known else self._read_or_note(path, filters)
                        tables[path] = table
                    except FileNotFoundError:
                        vanished.add(path)
                        complete = False
            self.damaged |= vanished.intersection(listed)
            tables = {path: tables[path] for path in listed if path in tables}
            if cached is None or list(tables) != list(known):
                whole = in_order(name, [TABLES[name].empty_table(), *tables.values()])
                cached = _Selection(tables, whole.to_pandas(use_threads=False))
            self._cache[selection] = cached
            while len(self._cache) > self.CACHED_SELECTIONS:
                self._cache.pop(next(iter(self._cache)))
        return cached.rows.copy(deep=False)  # pandas copies what the caller changes

    def _read_or_note(self, path: Path, filters: list[tuple[str, str, Any]] | None) -> pa.Table:
        try:
            return read_part(path, filters)
        except FileNotFoundError:
            raise
        except DAMAGED:
            self.damaged.add(path)
            return TABLES[path.parent.name].empty_table()


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
        with os.scandir(root) as entries:
            # A link may lead anywhere, so it is none of our runs.
            names = [e.name for e in entries if RUN_ID.fullmatch(e.name) and not e.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((n for n in names if os.path.isfile(f"{root}/{n}/config.json")), reverse=True)


assert PERCENTILES.names[5:] == list(GRID_COLUMNS)
