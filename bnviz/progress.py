"""The progress of runs on a terminal."""

from __future__ import annotations

import contextlib
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bnviz import jobs, queue
from bnviz.processes import true_status
from bnviz.status import ACTIVE, UNFINISHED
from bnviz.store import Run

ADVANCE_INTERVAL_S = 5.0
"""How often the queue is looked after meanwhile."""


def follow(runs: list[Run]) -> None:
    """Show how far runs are until all have ended."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(12),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[accuracy]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {
            run.run_id: progress.add_task(
                run.config.label, total=run.status.steps, speed="starting", accuracy=""
            )
            for run in runs
        }
        unfinished, looked = True, time.monotonic()
        while unfinished:
            unfinished = False
            if time.monotonic() - looked > ADVANCE_INTERVAL_S:
                with contextlib.suppress(queue.CannotStart):  # it is tried again
                    queue.advance(runs[0].paths.directory.parent)
                looked = time.monotonic()
            for run in runs:
                status = true_status(run)
                state = status.state
                unfinished |= state in ACTIVE
                speed = (
                    f"{status.steps_per_s:,.0f} steps/s" if status.steps_per_s else state.lower()
                )
                accuracy = status.test_accuracy
                progress.update(
                    tasks[run.run_id],
                    completed=status.step,
                    speed=speed,
                    accuracy="" if accuracy is None else f"accuracy {accuracy:.4f}",
                )
            time.sleep(0.2)


def cancel_all(runs: list[Run]) -> None:
    """Cancel those that have not ended, and say where each stands."""
    for run in runs:
        if true_status(run).state in UNFINISHED:
            jobs.cancel(run)
    for run in runs:
        state = jobs.wait_until_finished(run, timeout_s=10)
        print(f"bnviz: {run.run_id} {state} at step {run.status.step:,}", file=sys.stderr)
