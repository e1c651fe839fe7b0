"""What the page costs: `python benchmarks/bench_page.py`.

Runs of 50,000 steps with 1,000 records of 300 units, as the preset `figure1` leaves them, grow by a
record a second each, written by one process in place of the workers, so that training does not
disturb the measurement. A browser looks at 1, 8 and 30 of them on the pages Lab and Compare. A tick
is counted from the browser's request to the last frame of the answer, with all bytes received. Then
the page Runs is opened with 10 and with 1,000 runs.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnviz import processes, store
from bnviz.config import RunConfig
from bnviz.schema import GRID
from bnviz.status import State, Status
from bnviz.store import RunPaths
from bnviz.trace import TraceWriter
from tests.dashboard import Server, chromium

COUNTS = (1, 8, 30)
RECORDS, EVALUATIONS = 1_000, 100
TICKS_S = 15
MANY = (10, 1_000)


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


def watch(browser: Any, server: Server, path: str, growing: list[GrowingRun]) -> None:
    grower = multiprocessing.Process(target=grow_each_second, args=(growing,), daemon=True)
    grower.start()
    page = browser.new_page()
    frames = Frames(page)
    ids = "&".join(f"run={run.paths.directory.name}" for run in growing)
    page.goto(f"{server.url}{path}?{ids}")
    page.locator(".bnviz-chart .plot[data-drawn=true]").first.wait_for(timeout=120_000)
    page.wait_for_timeout(3_000)
    frames.log.clear()
    page.wait_for_timeout(1000 * TICKS_S)
    grower.kill()
    grower.join()
    ticks = frames.answers()
    times, sizes = zip(*ticks, strict=True)
    print(
        f"{path or 'lab':8} {len(growing):3} runs: {len(ticks)} ticks, "
        f"{statistics.median(times):6.0f} ms median, {max(times):6.0f} ms at most, "
        f"{statistics.median(sizes) / 1000:7.0f} kB median"
    )
    page.close()


def open_runs_page(browser: Any, root: Path, count: int) -> None:
    for number in range(count):
        directory = root / f"20260101-{number:06d}-lr-sweep-{number:06x}"
        directory.mkdir(parents=True)
        paths = RunPaths(directory)
        config = RunConfig().replace({"training.seed": number, "model.hidden": [100]})
        store.write_config(paths, config)
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
        page.get_by_text(f"{count:,} of {count:,} runs").wait_for(timeout=60_000)
        page.locator("canvas").first.wait_for()
        opened = time.perf_counter() - began
        answer, size = frames.answers()[0]
        print(
            f"Runs with {count:,} runs, {visit} visit: {opened:.2f} s, of which the server's "
            f"answer {answer:.0f} ms, {size / 1000:.0f} kB"
        )
        page.close()
    server.kill()


def main() -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        root = Path(scratch) / "runs"
        prepared: dict[str, Path] = {}
        runs = [GrowingRun(root, number, prepared) for number in range(max(COUNTS))]
        server = Server(root)
        for path in ("", "compare"):
            for count in COUNTS:
                watch(browser, server, path, runs[:count])
        server.kill()
        for count in MANY:
            open_runs_page(browser, Path(scratch) / f"many{count}", count)


if __name__ == "__main__":
    main()
