"""Real worker processes on real MNIST."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from bnviz import jobs
from bnviz.status import State, Status
from bnviz.store import Run, RunPaths, StoreError, live_parts, open_run, write_status
from bnviz.training import Metrics, Percentiles, train

from .conftest import small, submit_and_wait


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def start_long_run(root):
    run = open_run(root / jobs.submit(small(training__steps=1_000_000), root, "long"))
    wait_for(lambda: len(run.metrics()) > 0)
    return run


def test_a_submitted_run_completes_and_its_tables_hold_what_train_yields(root, mnist):
    config = small(model__normalization="batch")
    run = submit_and_wait(config, root)
    status = run.status
    assert status.state is State.COMPLETED
    assert (status.step, status.steps, status.device) == (200, 200, "CPU")
    assert status.submitted_at <= status.started_at <= status.finished_at
    assert run.config == config
    records = list(train(config, mnist))
    metrics = sorted(
        (r.step, r.split, np.float32(r.loss)) for r in records if isinstance(r, Metrics)
    )
    stored = run.metrics()
    assert list(zip(stored["step"], stored["split"], stored["loss"], strict=True)) == metrics
    traces = [r for r in records if isinstance(r, Percentiles) and r.layer == "hidden3"]
    rows = run.percentiles("hidden3", 7)
    np.testing.assert_array_equal(rows["step"], [r.step for r in traces])
    np.testing.assert_array_equal(rows["p85"], np.float32([r.grid[7, 10] for r in traces]))
    assert status.summary["test_accuracy"] == pytest.approx(
        stored.query("split == 'test'")["accuracy"].iloc[-1]
    )
    assert all(len(live_parts(run.paths.table(t))) == 1 for t in ("metrics", "percentiles"))


def test_a_run_outlives_the_process_that_started_it(root):
    code = (
        "import sys, pathlib; sys.path.insert(0, '.')\n"
        "from tests.conftest import small\n"
        "from bnviz import jobs\n"
        "print(jobs.submit(small(), pathlib.Path(sys.argv[1]), 'orphan'))\n"
        "import os, signal; sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
    assert parent.returncode == -signal.SIGKILL
    run = open_run(root / parent.stdout.decode().strip())
    assert jobs.wait_until_finished(run, 60) is State.COMPLETED


def test_cancel_stops_within_two_seconds_and_keeps_what_was_recorded(root):
    run = start_long_run(root)
    pid = run.status.pid
    before = len(run.metrics())
    asked = time.monotonic()
    jobs.cancel(run)
    assert jobs.wait_until_finished(run, 10) is State.CANCELLED
    assert time.monotonic() - asked < 2
    assert len(run.metrics()) >= before
    assert run.metrics()["step"].max() <= run.status.step < 1_000_000
    wait_for(lambda: jobs.process_started(pid) is None, 5)
    with pytest.raises(StoreError, match="CANCELLED, so there is nothing to cancel"):
        jobs.cancel(run)


def test_a_run_is_cancelled_while_it_starts(root):
    run = open_run(root / jobs.submit(small(training__steps=1_000_000), root, "early"))
    assert jobs.true_status(run).state is State.QUEUED
    time.sleep(0.3)
    jobs.cancel(run)
    asked = time.monotonic()
    assert jobs.wait_until_finished(run, 10) is State.CANCELLED
    assert time.monotonic() - asked < 2


def test_a_killed_worker_is_lost_and_its_records_are_there(root):
    run = start_long_run(root)
    before = len(run.metrics())
    os.kill(run.status.pid, signal.SIGKILL)
    wait_for(lambda: jobs.true_status(run).state is State.LOST, 5)
    assert run.status.state is State.RUNNING  # LOST is derived, never stored
    assert len(open_run(run.paths.directory).metrics()) >= before
    with pytest.raises(StoreError, match="LOST"):
        jobs.cancel(run)


@pytest.fixture
def running(tmp_path):
    """A run directory whose status names this very process."""
    paths = RunPaths(tmp_path)
    status = Status(
        state=State.RUNNING,
        steps=1,
        submitted_at=0,
        updated_at=0,
        pid=os.getpid(),
        pid_started=jobs.process_started(os.getpid()),
        boot_id=jobs.boot_id(),
    )
    write_status(paths, status)
    return Run(tmp_path)


def test_a_process_that_got_the_same_pid_is_not_taken_for_the_worker(running):
    assert jobs.true_status(running).state is State.RUNNING
    for changed in ({"pid_started": running.status.pid_started - 60}, {"boot_id": "another"}):
        write_status(running.paths, running.status.model_copy(update=changed))
        assert jobs.true_status(running).state is State.LOST


def test_setting_the_clock_loses_no_run(running, monkeypatch):
    """The system's boot time is derived from the clock, and psutil's start times from that."""
    boot_time = psutil.boot_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time + 3600)
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time + 3600)
    assert psutil.Process().create_time() > time.time()
    assert jobs.true_status(running).state is State.RUNNING


def test_a_run_that_ends_while_it_is_looked_at_is_not_lost(running, monkeypatch):
    def ended_meanwhile(pid):
        finished = running.status.model_copy(update={"state": State.COMPLETED})
        write_status(running.paths, finished)

    monkeypatch.setattr(jobs, "process_started", ended_meanwhile)
    assert jobs.true_status(running).state is State.COMPLETED


def test_a_diverging_run_ends_as_diverged_at_its_step(root):
    config = small(
        model__normalization="none", model__nonlinearity="relu", optimizer__learning_rate=100.0
    )
    run = submit_and_wait(config, root)
    assert run.status.state is State.DIVERGED
    assert 0 < run.status.step < 200
    assert run.status.summary["diverged_at"] == run.status.step
    assert "not finite" in run.status.summary["reason"]
    assert 0 in set(run.percentiles("hidden3", 0)["step"])


def test_an_exception_ends_as_failed_with_its_traceback(root):
    run = open_run(root / jobs.submit(small(), root, "broken"))
    run.paths.config.write_text('{"model": {"depth": 3}}')
    assert jobs.wait_until_finished(run, 60) is State.FAILED
    error = run.status.error
    assert error.type == "StoreError"
    assert "model.depth: unknown key" in error.message
    assert "Traceback (most recent call last)" in error.traceback
    assert "model.depth" in run.paths.log.read_text()


def test_a_root_that_cannot_be_written_is_answered_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write runs to .*choose a folder"):
        jobs.submit(small(), tmp_path / "file", "x")
    with pytest.raises(StoreError, match="cannot write runs to"):
        jobs.submit(small(), tmp_path / "file" / "below", "x")


def test_many_submits_at_once_have_directories_of_their_own(root):
    ids = [jobs.submit(small(training__steps=1), root, "same") for _ in range(4)]
    assert len(set(ids)) == 4
    runs = [open_run(root / run_id) for run_id in ids]
    assert {jobs.wait_until_finished(run, 90) for run in runs} == {State.COMPLETED}


def test_a_start_that_fails_leaves_nothing_behind(root, monkeypatch):
    def refuse(*arguments, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(jobs.subprocess, "Popen", refuse)
    with pytest.raises(StoreError, match="cannot start a process"):
        jobs.submit(small(), root, "x")
    monkeypatch.undo()

    def full(*arguments):
        raise OSError(28, "full")

    monkeypatch.setattr(jobs, "write_status", full)
    with pytest.raises(StoreError, match=r"cannot write runs to .*: full"):
        jobs.submit(small(), root, "x")
    assert list(root.iterdir()) == []
