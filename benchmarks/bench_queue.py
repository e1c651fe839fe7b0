"""What 500 waiting runs cost: `python benchmarks/bench_queue.py`.

Submits them to a scratch root with two slots (two real workers train), and prints the time of a
submit, of a look at the queue and of starting the next run, and the memory and processor time of
all processes of the queue besides the workers.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Report, spread
from bnviz import jobs, processes, queue
from bnviz.config import RunConfig
from bnviz.status import State
from bnviz.store import open_run

COUNT = 500


def milliseconds(action: object, *arguments: object) -> float:
    began = time.perf_counter()
    action(*arguments)  # type: ignore[operator]
    return (time.perf_counter() - began) * 1000


def main() -> None:
    report = Report("queue")
    os.environ[queue.SLOTS_VARIABLE] = "2"
    config = RunConfig().replace({"training.steps": 10_000_000})
    # Workers that were cancelled may write a last file while it is deleted.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        root = Path(scratch) / "runs"
        submits = [milliseconds(jobs.submit, config, root, "queued") for _ in range(COUNT)]
        waiting = queue.waiting(root)
        looks = [milliseconds(queue.waiting, root) for _ in range(20)]
        advances = [milliseconds(queue.advance, root) for _ in range(20)]
        report.table(
            f"{COUNT} runs submitted, {len(waiting)} wait",
            ("what", "ms (quartiles)"),
            [
                ("a submit", spread(np.array(submits), 1)),
                ("the last ten", spread(np.array(submits[-10:]), 1)),
                ("a look at the queue", spread(np.array(looks), 1)),
                ("an advance with no free slot", spread(np.array(advances), 1)),
            ],
        )
        running = [open_run(p) for p in sorted(root.glob("2*"))]
        running = [run for run in running if processes.has_process(run.status)]
        time.sleep(15)
        guards = {psutil.Process(run.status.pid).parent() for run in running}
        time.sleep(30)
        report.table(
            "What waits for a worker",
            ("process", "MB", "s of processor time"),
            [
                (guard.name(), guard.memory_info().rss / 1e6, sum(guard.cpu_times()[:2]))
                for guard in filter(None, guards)
            ],
        )
        for run in waiting:
            jobs.pause(run)
        for run in running:
            jobs.cancel(run)
            assert jobs.wait_until_finished(run, 20) is State.CANCELLED


if __name__ == "__main__":
    main()
