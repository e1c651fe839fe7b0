"""Whatever is done to runs, in whatever order: allowed transitions only, and nothing is lost."""

import os
import signal
import tempfile
import time
import unittest.mock
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from bnviz import jobs, queue
from bnviz.processes import has_process, true_status
from bnviz.status import ACTIVE, RESUMABLE, UNFINISHED, State
from bnviz.store import RUN_ID, StoreError, open_run

from .conftest import small
from .zygote import Zygote

SLOTS = 2
STEPS = 1_500


class Runs(RuleBasedStateMachine):
    """Real workers, forked from one that has loaded torch. A model keeps, for each run, how many
    records it had; there must never be fewer, and none twice."""

    runs = Bundle("runs")

    def __init__(self):
        super().__init__()
        self.zygote = Zygote.shared()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name) / "runs"
        self.recorded = {}
        self.pids = {}
        self.patches = [
            unittest.mock.patch.object(queue, "_start", self.start),
            unittest.mock.patch.dict(os.environ, {"BNVIZ_SLOTS": str(SLOTS)}),
        ]
        for patch in self.patches:
            patch.start()

    def start(self, runs):
        [run] = runs
        often = {
            "FLUSH_INTERVAL_S": 0.02,
            "CHECKPOINT_INTERVAL_S": 0.1,
            "CHECKPOINT_SHARE": 1.0,
            "FLUSH_SHARE": 1e9,
        }
        pid = self.zygote.start(run.paths.directory, **often)
        self.pids.setdefault(run.run_id, []).append(pid)
        wait_for(lambda: run.status.pid is not None or run.status.state is not State.QUEUED)

    def teardown(self):
        for pids in self.pids.values():
            for pid in pids:
                self.zygote.kill(pid)
        for patch in self.patches:
            patch.stop()
        self.folder.cleanup()

    def attempt(self, action, run, allowed):
        """Do something; it must be refused unless the state allows it. Returns the state then."""
        before = self.state(run)
        try:
            action(run)
        except StoreError as error:
            after = self.state(run)
            if before in allowed and after in allowed:  # it has not just ended by itself
                raise AssertionError(f"{action.__name__} was refused when {before}") from error
            return after
        assert before in allowed, f"{action.__name__} was accepted when {before}"
        return self.state(run)

    def state(self, run):
        return true_status(run).state

    @rule(target=runs)
    def submit(self):
        config = small(
            training__steps=STEPS,
            training__evaluations=10,
            trace__records=30,
            model__hidden=[3, 2],
            training__batch_size=20,
            trace__probe_size=20,
        )
        run = open_run(self.root / jobs.submit(config, self.root, "test"))
        self.recorded[run.run_id] = 0
        return run

    @rule(run=runs)
    def pause(self, run):
        self.attempt(jobs.pause, run, ACTIVE)
        state = jobs.wait_until_finished(run, 60) if has_process(run.status) else self.state(run)
        assert state not in ACTIVE

    @rule(run=runs)
    def cancel(self, run):
        self.attempt(jobs.cancel, run, UNFINISHED)
        state = jobs.wait_until_finished(run, 60) if has_process(run.status) else self.state(run)
        assert state not in ACTIVE

    @rule(run=runs)
    def resume(self, run):
        assert self.attempt(jobs.resume, run, RESUMABLE) is not State.LOST

    @rule(run=runs, wait=st.floats(0, 0.2))
    def kill(self, run, wait):
        time.sleep(wait)
        status = run.status
        if has_process(status):
            os.kill(status.pid, signal.SIGKILL)
            wait_for(lambda: self.state(run) not in ACTIVE)
            # LOST, unless it had reached its end.
            assert self.state(run) in (State.LOST, State.COMPLETED)

    @rule()
    def advance(self):
        """What the end of a run, or the shell that waits for a killed one, does."""
        queue.advance(self.root)

    @rule(run=consumes(runs))
    def delete_for_good(self, run):
        try:
            jobs.delete(run)
        except StoreError:
            assert has_process(run.status)
            jobs.cancel(run)
            jobs.wait_until_finished(run, 60)
            jobs.delete(run)
        del self.recorded[run.run_id]
        assert jobs.deleted(self.root) == [run.run_id]
        assert jobs.empty_trash(self.root) == 1

    @rule(run=runs)
    def delete_and_restore(self, run):
        if not has_process(run.status):
            before = run.status
            jobs.delete(run)
            jobs.restore(self.root, run.run_id)
            assert run.status == before

    @invariant()
    def nothing_is_lost_or_doubled(self):
        present = [p.name for p in self.root.glob("*") if RUN_ID.fullmatch(p.name)]
        assert sorted(present) == sorted(self.recorded)
        for run_id in present:
            run = open_run(self.root / run_id)
            rows = run.metrics()
            assert not rows.duplicated(["step", "split"]).any()
            assert not run.percentiles("hidden1", 0).duplicated("step").any()
            assert len(rows) >= self.recorded[run_id]
            assert run.damaged == set()
            self.recorded[run_id] = len(rows)

    @invariant()
    def no_more_train_than_there_are_slots_and_each_once(self):
        runs = [open_run(self.root / run_id) for run_id in self.recorded]
        assert sum(has_process(run.status) for run in runs) <= SLOTS
        for pids in self.pids.values():
            assert sum(self.zygote.is_alive(pid) for pid in pids) <= 1


def wait_for(condition, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


TestRuns = Runs.TestCase
TestRuns.settings = settings(
    max_examples=12,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
