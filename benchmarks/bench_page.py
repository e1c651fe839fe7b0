"""What the page costs: `python benchmarks/bench_page.py`.

Runs of 50,000 steps with 1,000 records of 300 units, as the preset `figure1` leaves them, grow by a
record a second each, written by one process in place of the workers, so that training does not
disturb the measurement. A browser looks at 1, 8 and 30 of them on the pages Lab and Compare. A tick
is counted from the browser's request to the last frame of the answer, with all bytes received; the
server's part is the processor time that its process used. Then the dashboard is started anew, and
the page Runs is opened with 10, with 1,000 and with 10,000 runs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Report, spread
from bnviz import processes, store
from bnviz.config import RunConfig
from bnviz.schema import GRID, SCHEMA_VERSION
from bnviz.status import State, Status
from bnviz.store import RunPaths
from bnviz.trace import TraceWriter
from tests.dashboard import Server, chromium

COUNTS = (1, 8, 30)
RECORDS, EVALUATIONS = 1_000, 100
TICKS_S = 15
STARTS = 3
MANY = (10, 1_000, 10_000)


class GrowingRun:
    """A run directory with nearly all of its records, whose worker is this process."""

    def __init__(self, root: Path, number: int, prepared: dict[str, Path]) -> None:
        kind = ("none", "batch")[number % 2]
        directory = root / f"20260101-0000{number:02d}-figure1-{kind}-{number:06x}"
        directory.mkdir(parents=True)
        self.paths = RunPaths(directory)
        self.paths.control.mkdir()
        self.config = RunConfig().replace(
            {"model.normalization": kind, "training.seed": number // 2}
        )
        store.write_config(self.paths, self.config)
        if kind in prepared:  # the same numbers, on the disk once
            for table in ("metrics", "percentiles"):
                self.paths.table(table).mkdir()
                for part in (prepared[kind] / table).iterdir():
                    os.link(part, self.paths.table(table) / part.name)
            self.writer = TraceWriter(self.paths, from_step=49_000)
        else:
            self.writer = TraceWriter(self.paths)
            for record in range(RECORDS - 20):
                self.record(record * 50)
            self.writer.flush()
            self.writer.merge()
            prepared[kind] = directory
            self.writer = TraceWriter(self.paths, from_step=49_000)
        self.step = (RECORDS - 20) * 50
        self.report()

    def record(self, step: int) -> None:
        rng = np.random.default_rng(step)
        for layer, units in self.config.model.layers.items():
            grid = np.sort(rng.normal(size=(units, len(GRID))), axis=1)
            self.writer.add_percentiles(step, layer, grid.mean(axis=1), grid.std(axis=1), grid)
        if step % (50_000 // EVALUATIONS) == 0 or step > 49_000:
            values = {"loss": 0.1, "learning_rate": 0.1, "wall_time_s": step / 600}
            accuracy = 0.9 + 0.05 * float(rng.random())
            self.writer.add_metrics(step=step, split="test", accuracy=accuracy, **values)
            self.writer.add_metrics(step=step, split="train", accuracy=None, **values)

    def go_on(self) -> None:
        """In another process than the one before."""
        status = store.open_run(self.paths.directory).status
        self.step = status.step
        self.writer = TraceWriter(self.paths, from_step=self.step + 1)
        self.report()

    def grow(self) -> None:
        self.step += 1
        self.record(self.step)
        self.writer.flush()
        self.report()

    def report(self) -> None:
        """As a run of the process that calls this."""
        pid, now = os.getpid(), time.time()
        status = Status(
            state=State.RUNNING,
            step=self.step,
            steps=50_000,
            submitted_at=now,
            updated_at=now,
            pid=pid,
            pid_started=processes.process_started(pid),
            boot_id=processes.boot_id(),
        )
        store.write_status(self.paths, status)


class Frames:
    """The WebSocket traffic of a page."""

    def __init__(self, page: Any) -> None:
        self.log: list[tuple[float, str, int]] = []
        page.on("websocket", self._listen)

    def _listen(self, socket: Any) -> None:
        for event in ("framesent", "framereceived"):
            socket.on(
                event, lambda data, e=event: self.log.append((time.perf_counter(), e, len(data)))
            )

    def answers(self) -> list[tuple[float, int]]:
        """For each request: milliseconds to the last frame of the answer, and its bytes."""
        found = []
        sent = [i for i, (_, event, _) in enumerate(self.log) if event == "framesent"]
        for start, stop in zip(sent, [*sent[1:], len(self.log)], strict=True):
            received = self.log[start + 1 : stop]
            if received:
                milliseconds = (received[-1][0] - self.log[start][0]) * 1000
                found.append((milliseconds, sum(size for _, _, size in received)))
        return found


def grow_each_second(runs: list[GrowingRun]) -> None:
    for run in runs:
        run.go_on()
    while True:
        began = time.monotonic()
        for run in runs:
            run.grow()
        time.sleep(max(0.0, began + 1 - time.monotonic()))


def watch(browser: Any, server: Server, path: str, growing: list[GrowingRun]) -> tuple[object, ...]:
    grower = multiprocessing.Process(target=grow_each_second, args=(growing,), daemon=True)
    grower.start()
    page = browser.new_page()
    frames = Frames(page)
    ids = "&".join(f"run={run.paths.directory.name}" for run in growing)
    page.goto(f"{server.url}{path}?{ids}")
    page.locator(".bnviz-chart .plot[data-drawn=true]").first.wait_for(timeout=120_000)
    page.wait_for_timeout(3_000)
    frames.log.clear()
    before = processor_seconds(server)
    page.wait_for_timeout(1000 * TICKS_S)
    used = processor_seconds(server) - before
    grower.kill()
    grower.join()
    ticks = frames.answers()
    times, sizes = zip(*ticks, strict=True)
    page.close()
    # Compare ticks in two parts, each second.
    return (
        path or "lab",
        len(growing),
        len(ticks),
        spread(np.array(times)),
        round(max(times)),
        round(used / TICKS_S * 1000),
        round(statistics.median(sizes) / 1000),
    )


def processor_seconds(server: Server) -> float:
    process = psutil.Process(server.process.pid)
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def start(browser: Any, root: Path) -> tuple[object, ...]:
    """Seconds from the start of the dashboard to its answer, and to the first chart on the screen;
    and to that of a second visit."""
    began = time.perf_counter()
    server = Server(root)
    served = time.perf_counter() - began
    painted = []
    for _ in range(2):
        page = browser.new_page()
        opened = time.perf_counter()
        page.goto(server.url)
        page.locator(".bnviz-chart .plot[data-drawn=true]").first.wait_for(timeout=120_000)
        painted.append(time.perf_counter() - opened)
        page.close()
    server.kill()
    return (round(served, 2), round(painted[0], 2), round(painted[1], 2))


def open_runs_page(browser: Any, root: Path, count: int) -> Iterator[tuple[object, ...]]:
    for number in range(count):
        directory = root / f"20260101-{number:06d}-lr-sweep-{number:06x}"
        directory.mkdir(parents=True)
        paths = RunPaths(directory)
        config = RunConfig().replace({"training.seed": number, "model.hidden": [100]})
        values = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
        paths.config.write_text(json.dumps(values))  # without waiting for the disk
        summary = {"test_accuracy": 0.9, "test_loss": 0.3}
        status = Status(
            state=State.COMPLETED,
            step=50_000,
            steps=50_000,
            submitted_at=float(number + 1),
            updated_at=float(number + 90),
            summary=summary,
        )
        store.write_status(paths, status)
    server = Server(root)
    for visit in ("first", "second"):
        page = browser.new_page()
        frames = Frames(page)
        began = time.perf_counter()
        page.goto(server.url + "runs")
        page.get_by_text(f"{count:,} of {count:,} runs").wait_for(timeout=120_000)
        page.locator("canvas").first.wait_for()
        opened = time.perf_counter() - began
        answer, size = frames.answers()[0]
        yield count, visit, round(opened, 2), round(answer), round(size / 1000)
        page.close()
    server.kill()


def main() -> None:
    report = Report("page")
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        root = Path(scratch) / "runs"
        prepared: dict[str, Path] = {}
        runs = [GrowingRun(root, number, prepared) for number in range(max(COUNTS))]
        server = Server(root)
        ticks = [
            watch(browser, server, path, runs[:count])
            for path in ("", "compare")
            for count in COUNTS
        ]
        server.kill()
        header = ("page", "runs", "ticks", "ms", "longest, ms", "server, ms/s", "kB")
        report.table(f"Ticks of {TICKS_S} seconds", header, ticks)
        starts = [start(browser, Path(scratch) / "empty") for _ in range(STARTS)]
        header = ("serves after, s", "first chart, s", "of a second visit, s")
        report.table("Start", header, starts)
        opened = [
            row
            for count in MANY
            for row in open_runs_page(browser, Path(scratch) / f"many{count}", count)
        ]
        header = ("runs", "visit", "on the screen, s", "server's answer, ms", "kB")
        report.table("The page Runs", header, opened)


if __name__ == "__main__":
    main()
