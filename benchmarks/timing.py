"""Timing ways of doing the same in turns, and telling what came of it."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RESULTS = Path(__file__).resolve().parent / "results"

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pyarrow",
    "pandas",
    "plotly",
    "streamlit",
    "tensorboard",
)

Seconds = npt.NDArray[np.float64]


def in_turns(ways: Mapping[str, Callable[[], int]], turns: int) -> dict[str, Seconds]:
    """Seconds that each way took for one of what it does, (turns,).

    They are called in turns, after one call each that is not counted, so that what else the machine
    does falls on all of them. Each returns how many it did.
    """
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            began = time.perf_counter()
            done = way()
            seconds[name].append((time.perf_counter() - began) / done)
    return {name: np.array(times) for name, times in seconds.items()}


def spread(values: Seconds, digits: int = 0) -> str:
    """Median and quartiles, for people."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratio(values: Seconds, peer: Seconds) -> float:
    """How many times the peer's time, turn by turn: the median over the turns."""
    return float(np.median(values / peer))


class Report:
    """Prints tables as Markdown, and keeps them with the machine and the versions as JSON in
    `benchmarks/results/<name>.json`."""

    def __init__(self, name: str) -> None:
        self._path = RESULTS / f"{name}.json"
        self._told: dict[str, Any] = {"machine": machine(), "tables": {}}
        print("\n".join(f"{key}: {value}" for key, value in self._told["machine"].items()))

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        print(f"\n**{title}**\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
        for row in rows:
            print(f"| {' | '.join(_text(cell) for cell in row)} |")
        sys.stdout.flush()
        self._told["tables"][title] = [dict(zip(header, row, strict=True)) for row in rows]
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text(json.dumps(self._told, indent=2, ensure_ascii=False) + "\n")


def _text(cell: object) -> str:
    return f"{cell:,.3g}" if isinstance(cell, float) else str(cell)


def machine() -> dict[str, Any]:
    """What a measurement depends on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
