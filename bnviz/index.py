"""All runs of a root as one table. A thousand of them are read within a moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pandas as pd

from bnviz.about import About, read_about
from bnviz.captions import setting
from bnviz.config import RunConfig
from bnviz.files import version
from bnviz.processes import true_status
from bnviz.status import UNFINISHED, State, Status
from bnviz.store import Run, StoreError, list_run_ids

COLUMNS = {
    "run_id": "string",
    "state": "string",
    "name": "string",
    "settings": "string",
    "progress": "float64",
    "step": "int64",
    "steps": "int64",
    "test_accuracy": "float64",
    "best_test_accuracy": "float64",
    "test_loss": "float64",
    "train_loss": "float64",
    "steps_per_s": "float64",
    "device": "string",
    "submitted": "datetime64[s, UTC]",
    "duration_s": "float64",
    "group": "string",
    "tags": "object",
    "note": "string",
    "archived": "bool",
}
"""Columns of the table and their types. `progress` is a fraction, `settings` what differs from the
defaults in words, `duration_s` the time from start to end."""


class Index:
    """Reads a root again and again, each time only what has changed. Safe to share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._runs: dict[str, Run] = {}
        self._rows: dict[str, tuple[Any, dict[str, Any]]] = {}  # of ended runs, by signature
        self._lock = threading.Lock()

    def table(self) -> pd.DataFrame:
        """One row a run, the newest first; COLUMNS. A damaged run is there as far as it goes."""
        with self._lock:
            run_ids = list_run_ids(self._root)
            self._runs = {i: self._runs.get(i) or Run(self._root / i) for i in run_ids}
            self._rows = {i: known for i, known in self._rows.items() if i in self._runs}
            rows = [self._row(run_id, run) for run_id, run in self._runs.items()]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        table["submitted"] = pd.to_datetime(table["submitted"], unit="s", utc=True)
        return table.astype(COLUMNS)

    def _row(self, run_id: str, run: Run) -> dict[str, Any]:
        signature = _signature(run)
        known = self._rows.get(run_id)
        if known is not None and known[0] == signature:
            return known[1]
        status = true_status(run)
        row = _row(run, status, read_about(run))
        if status.state not in UNFINISHED:  # else its process may end with no change of a file
            self._rows[run_id] = signature, row
        return row


def _row(run: Run, status: Status, about: About) -> dict[str, Any]:
    ended = status.finished_at or status.updated_at
    return {
        "run_id": run.run_id,
        "state": status.state.value,
        "name": about.name or run.run_id[16:],
        "settings": _settings(run),
        "progress": min(1.0, status.step / status.steps),
        "step": status.step,
        "steps": status.steps,
        **{key: _number(status, key) for key in _SUMMARY},
        "steps_per_s": status.steps_per_s if status.state is State.RUNNING else None,
        "device": status.device,
        "submitted": int(status.submitted_at),
        "duration_s": ended - status.started_at if status.started_at else None,
        "group": about.group,
        "tags": list(about.tags),
        "note": about.note,
        "archived": about.archived,
    }


_SUMMARY = ("test_accuracy", "best_test_accuracy", "test_loss", "train_loss")


def _signature(run: Run) -> tuple[Any, ...]:
    """Changes whenever the status or what is said of the run does: both are always replaced."""
    marks: list[Any] = []
    for path in (run.paths.status, run.paths.about):
        try:
            marks.append(version(path))
        except OSError:
            marks.append(None)
    return tuple(marks)


def _number(status: Status, key: str) -> float | None:
    value = status.summary.get(key)
    return value if isinstance(value, float) and abs(value) < 1e300 else None


def _settings(run: Run) -> str:
    try:
        config = run.config
    except StoreError:
        return "config.json cannot be read"
    return describe_differences(config)


def describe_differences(config: RunConfig) -> str:
    """What sets a configuration apart from the defaults, in words."""
    differing = config.differences()
    differing.pop("model.normalization", None)
    return ", ".join([config.label, *(setting(p, value) for p, value in differing.items())])
