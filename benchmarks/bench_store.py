"""The store against what people use instead: `python benchmarks/bench_store.py [RECORDS]`.

A run that recorded 300 units at each of 50,000 steps: writing it, reading one unit of a layer when
it is finished, and following it while it grows. The peers are a long CSV file, an SQLite database
with an index, and TensorBoard's event file with a histogram of one unit a layer. As these are slow,
they hold a part of the records, and the numbers are for one record.
"""

from __future__ import annotations

import csv
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Report, in_turns, ratio, spread
from bnviz.config import RunConfig
from bnviz.parts import live_parts
from bnviz.schema import GRID, GRID_COLUMNS
from bnviz.status import State, Status
from bnviz.store import Run, RunPaths, write_config, write_status
from bnviz.trace import TraceWriter

RECORDS = 50_000
OF_PEERS = 500
A_FLUSH = 700  # records, about those of a second
TURNS = 7
LAYER, UNIT = "hidden3", 7

rng = np.random.default_rng(0)


def record(units: int) -> np.ndarray:
    return np.sort(rng.normal(size=(units, len(GRID))).astype(np.float32), axis=1)


def write_ours(directory: Path, records: int) -> tuple[float, float]:
    """Seconds of writing while it grows, and of merging at the end."""
    paths = RunPaths(directory)
    directory.mkdir()
    write_config(paths, RunConfig())
    write_status(paths, Status(state=State.COMPLETED, steps=records, submitted_at=1, updated_at=1))
    layers = {layer: record(units) for layer, units in RunConfig().model.layers.items()}
    began = time.perf_counter()
    writer = TraceWriter(paths)
    for step in range(records):
        for layer, grid in layers.items():
            grid = grid * np.float32(1 + step * 1e-5)  # no two records are the same
            writer.add_percentiles(step, layer, grid[:, 7], grid[:, 1], grid)
        if step % A_FLUSH == A_FLUSH - 1:
            writer.flush()
    writer.flush()
    written = time.perf_counter()
    writer.merge()
    return written - began, time.perf_counter() - written


def rows(step: int) -> list[tuple[object, ...]]:
    """A record as a long table has it."""
    return [
        (step, layer, unit, *map(float, values))
        for layer, units in RunConfig().model.layers.items()
        for unit, values in enumerate(record(units))
    ]


COLUMNS = ("step", "layer", "unit", *GRID_COLUMNS)


def write_csv(path: Path) -> float:
    tables = [rows(step) for step in range(OF_PEERS)]
    began = time.perf_counter()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for table in tables:
            writer.writerows(table)
    return time.perf_counter() - began


def read_csv(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    return table[(table["layer"] == LAYER) & (table["unit"] == UNIT)]


def write_sqlite(path: Path) -> float:
    tables = [rows(step) for step in range(OF_PEERS)]
    began = time.perf_counter()
    with sqlite3.connect(path) as database:
        database.execute(f"create table percentiles ({', '.join(COLUMNS)})")
        database.execute("create index of_unit on percentiles (layer, unit, step)")
        for table in tables:
            marks = ", ".join("?" * len(COLUMNS))
            database.executemany(f"insert into percentiles values ({marks})", table)
    return time.perf_counter() - began


def read_sqlite(path: Path) -> pd.DataFrame:
    question = "select * from percentiles where layer = ? and unit = ? order by step"
    with sqlite3.connect(path) as database:
        return pd.read_sql_query(question, database, params=(LAYER, UNIT))


def write_events(folder: Path) -> float:
    """A histogram of one unit a layer, which is the nearest that `add_histogram` comes to
    percentiles; of all 300 units it would take half a second a record."""
    import torch
    from torch.utils.tensorboard import SummaryWriter

    layers = {n: torch.randn(60, u) for n, u in RunConfig().model.layers.items()}
    began = time.perf_counter()
    with SummaryWriter(str(folder)) as writer:
        for step in range(OF_PEERS):
            for layer, values in layers.items():
                writer.add_histogram(f"{layer}/{UNIT}", values[:, UNIT], step)
    return time.perf_counter() - began


def read_events(folder: Path) -> int:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    events.Reload()
    return len(events.Histograms(f"{LAYER}/{UNIT}"))


def main(records: int) -> None:
    report = Report("store")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        writing, merging = write_ours(root / "20260101-000000-run-000000", records)
        size = sum(f.stat().st_size for f in root.rglob("*.parquet"))
        written = {
            "ours": (writing, records, size),
            "long CSV": (write_csv(root / "a.csv"), OF_PEERS, (root / "a.csv").stat().st_size),
            "SQLite": (write_sqlite(root / "a.db"), OF_PEERS, (root / "a.db").stat().st_size),
            "TensorBoard, one unit a layer": (
                write_events(root / "events"),
                OF_PEERS,
                sum(f.stat().st_size for f in (root / "events").iterdir()),
            ),
        }
        report.table(
            "Writing records of 300 units",
            ("what", "µs a record", "÷ ours", "kB a record"),
            [
                (n, s / c * 1e6, s / c / (writing / records), b / c / 1e3)
                for n, (s, c, b) in written.items()
            ],
        )
        print(f"\nMerging our {records:,} records at the end: {merging:.1f} s")

        directory = root / "20260101-000000-run-000000"
        small = root / "20260101-000000-run-000001"
        write_ours(small, OF_PEERS)

        def timed(read: Callable[[], object]) -> Callable[[], int]:
            return lambda: (read(), 1)[1]

        ways = {
            f"ours, {records:,} records": timed(lambda: Run(directory).percentiles(LAYER, UNIT)),
            f"ours, {OF_PEERS} records": timed(lambda: Run(small).percentiles(LAYER, UNIT)),
            f"long CSV, {OF_PEERS} records": timed(lambda: read_csv(root / "a.csv")),
            f"SQLite, {OF_PEERS} records": timed(lambda: read_sqlite(root / "a.db")),
            f"TensorBoard, {OF_PEERS} records, one unit a layer": timed(
                lambda: read_events(root / "events")
            ),
        }
        seconds = in_turns(ways, TURNS)
        ours = seconds[f"ours, {OF_PEERS} records"]
        report.table(
            "Reading one unit of a finished run",
            ("what", "ms (quartiles)", "÷ ours with as many records"),
            [(n, spread(t * 1e3, 1), ratio(t, ours)) for n, t in seconds.items()],
        )
        assert len(Run(directory).percentiles(LAYER, UNIT)) == records
        assert len(live_parts(RunPaths(directory).table("percentiles"))) == 1
        report.table("Following a run", *follow(small))


def follow(directory: Path) -> tuple[tuple[str, str], list[tuple[object, ...]]]:
    """What a reader that is open pays for each new record."""
    run, writer, step = Run(directory), TraceWriter(RunPaths(directory)), OF_PEERS
    run.percentiles(LAYER, UNIT)
    seconds = []
    for _ in range(40):
        for layer, units in RunConfig().model.layers.items():
            grid = record(units)
            writer.add_percentiles(step, layer, grid[:, 7], grid[:, 1], grid)
        writer.flush()
        step += 1
        began = time.perf_counter()
        assert len(run.percentiles(LAYER, UNIT)) == step
        seconds.append(time.perf_counter() - began)
    return ("what", "ms (quartiles)"), [
        ("one unit, a new record", spread(np.array(seconds) * 1e3, 1))
    ]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS)
