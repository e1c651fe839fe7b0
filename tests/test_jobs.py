"""Real worker processes on real MNIST."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from bnviz import jobs, processes, queue, worker
from bnviz.config import ConfigError
from bnviz.parts import live_parts
from bnviz.records import Metrics, Percentiles
from bnviz.reporter import Reporter
from bnviz.status import State, Status
from bnviz.store import (
    Run,
    RunPaths,
    StoreError,
    list_run_ids,
    open_run,
    write_config,
    write_status,
)
from bnviz.training import train

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


def test_cancel_stops_a_run_and_keeps_what_was_recorded(root):
    run = start_long_run(root)
    pid = run.status.pid
    before = len(run.metrics())
    jobs.cancel(run)
    assert jobs.wait_until_finished(run, 60) is State.CANCELLED
    assert len(run.metrics()) >= before
    assert run.metrics()["step"].max() <= run.status.step < 1_000_000
    wait_for(lambda: processes.process_started(pid) is None, 60)
    with pytest.raises(StoreError, match="CANCELLED, so there is nothing to cancel"):
        jobs.cancel(run)


def test_a_run_is_cancelled_while_it_starts(root):
    run = open_run(root / jobs.submit(small(training__steps=1_000_000), root, "early"))
    assert processes.true_status(run).state is State.QUEUED
    time.sleep(0.3)
    jobs.cancel(run)
    assert jobs.wait_until_finished(run, 60) is State.CANCELLED


def test_a_killed_worker_is_lost_and_its_records_are_there(root):
    run = start_long_run(root)
    before = len(run.metrics())
    os.kill(run.status.pid, signal.SIGKILL)
    wait_for(lambda: processes.true_status(run).state is State.LOST, 60)
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
        pid_started=processes.process_started(os.getpid()),
        boot_id=processes.boot_id(),
    )
    write_status(paths, status)
    return Run(tmp_path)


def test_a_process_that_got_the_same_pid_is_not_taken_for_the_worker(running):
    assert processes.true_status(running).state is State.RUNNING
    for changed in ({"pid_started": running.status.pid_started - 60}, {"boot_id": "another"}):
        write_status(running.paths, running.status.model_copy(update=changed))
        assert processes.true_status(running).state is State.LOST


def test_setting_the_clock_loses_no_run(running, monkeypatch):
    """The system's boot time is derived from the clock, and psutil's start times from that."""
    boot_time = psutil.boot_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time + 3600)
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time + 3600)
    assert psutil.Process().create_time() > time.time()
    assert processes.true_status(running).state is State.RUNNING


def test_a_run_that_ends_while_it_is_looked_at_is_not_lost(running, monkeypatch):
    def ended_meanwhile(pid):
        finished = running.status.model_copy(update={"state": State.COMPLETED})
        write_status(running.paths, finished)

    monkeypatch.setattr(processes, "process_started", ended_meanwhile)
    assert processes.true_status(running).state is State.COMPLETED


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


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU's memory is full"),
        (MemoryError(), "the machine's memory is full; end other programs"),
    ],
)
def test_a_full_memory_fails_in_words_and_can_be_resumed(
    root, digits, monkeypatch, error, sentence
):
    def forward(network, images):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("bnviz.models.network.Network.forward", forward)
        run = worker.run_here(small(training__steps=5), root, "memory", train_on=digits)
    assert run.status.state is State.FAILED
    assert run.status.error.message.startswith(sentence)
    monkeypatch.setattr(
        queue, "_start", lambda runs: worker.carry_out([Reporter(run) for run in runs], digits)
    )
    jobs.resume(run)
    assert run.status.state is State.COMPLETED


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

    def full(*arguments, **options):
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(queue.subprocess, "Popen", refuse)
        with pytest.raises(StoreError, match=r"cannot start .*: Resource temporarily unavailable"):
            jobs.submit(small(), root, "x")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "write_config", full)
        with pytest.raises(StoreError, match=r"cannot write runs to .*: full"):
            jobs.submit(small(), root, "x")
    assert list_run_ids(root) == []


def test_a_run_in_this_process_is_stored_as_any_other(root, digits):
    seen = worker.run_here(small(training__steps=30), root, "here", train_on=digits)
    assert seen.status.state is State.COMPLETED
    assert seen.metrics()["step"].max() == 30
    assert seen.status.pid == os.getpid()
    again = worker.run_here(small(training__steps=30), root, "here", train_on=digits)
    assert list(again.metrics()["loss"]) == list(seen.metrics()["loss"])


def test_retry_and_a_changed_clone_are_new_runs(root, digits, monkeypatch):
    monkeypatch.setattr(queue, "_start", lambda run: None)
    run = worker.run_here(small(training__steps=5), root, "first", train_on=digits)
    again = open_run(root / jobs.retry(run))
    assert again.config == run.config
    assert again.run_id != run.run_id
    assert again.run_id[16:].startswith("first-")
    changed = open_run(root / jobs.retry(run, {"optimizer.learning_rate": 0.5}))
    assert changed.config.differences()["optimizer.learning_rate"] == 0.5
    with pytest.raises(ConfigError, match="must be a number above 0"):
        jobs.retry(run, {"optimizer.learning_rate": -1})


def test_deleted_runs_come_back_until_the_trash_is_emptied(root, digits):
    run = worker.run_here(small(training__steps=5), root, "gone", train_on=digits)
    rows = len(run.metrics())
    jobs.delete(run)
    assert list_run_ids(root) == []
    assert jobs.deleted(root) == [run.run_id]
    with pytest.raises(StoreError, match="not there any more"):
        jobs.delete(run)
    restored = jobs.restore(root, run.run_id)
    assert len(restored.metrics()) == rows
    assert jobs.deleted(root) == []
    jobs.delete(restored)
    assert jobs.empty_trash(root, older_than_days=1) == 0
    old = time.time() - jobs.TRASH_DAYS * 24 * 3600 - 1
    os.utime(root / ".trash" / run.run_id, (old, old))
    other = worker.run_here(small(training__steps=5), root, "other", train_on=digits)
    jobs.delete(other)  # what is too old goes for good
    assert jobs.deleted(root) == [other.run_id]
    assert jobs.empty_trash(root) == 1
    with pytest.raises(StoreError, match="there is no run"):
        jobs.restore(root, other.run_id)
    with pytest.raises(StoreError, match="is not a run id"):
        jobs.restore(root, "../../etc")


def test_the_trash_follows_no_link(root, tmp_path):
    (root / ".trash").mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (root / ".trash" / "20260101-000000-x-abcdef").symlink_to(precious)
    assert jobs.empty_trash(root) == 0
    assert (precious / "file").exists()


def test_what_cannot_be_done_is_said_in_words(root, digits):
    run = worker.run_here(small(training__steps=5), root, "done", train_on=digits)
    for action, sentence in (
        (jobs.cancel, "COMPLETED, so there is nothing to cancel"),
        (jobs.pause, "COMPLETED, so there is nothing to pause"),
        (jobs.resume, "COMPLETED, so it cannot be resumed; retry starts it anew"),
    ):
        with pytest.raises(StoreError, match=sentence):
            action(run)
    with pytest.raises(StoreError, match="the learning rate of a running run can be changed"):
        jobs.set_learning_rate(run, 0.5)
    with pytest.raises(ConfigError, match="must be a number above 0"):
        jobs.set_learning_rate(run, -0.5)


def test_a_running_run_is_not_deleted(running):
    write_config(running.paths, small())
    with pytest.raises(StoreError, match="cancel it before deleting"):
        jobs.delete(running)
    assert running.paths.status.exists()


def test_a_run_whose_status_is_damaged_can_be_resumed(root, digits, monkeypatch):
    monkeypatch.setattr(queue, "_start", lambda run: None)
    run = worker.run_here(small(training__steps=5), root, "damaged", train_on=digits)
    run.paths.status.write_text("garbage")
    jobs.resume(run)
    assert (run.status.state, run.status.steps, run.status.pid) == (State.QUEUED, 5, None)


def test_ctrl_c_in_a_notebook_pauses_the_run_and_keeps_its_records(root, digits, monkeypatch):
    from bnviz.steps import WrittenOutStep

    step = WrittenOutStep.__call__
    count = 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == 150:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(WrittenOutStep, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.run_here(small(), root, "cell", train_on=digits)
    [run_id] = list_run_ids(root)
    run = open_run(root / run_id)
    assert (run.status.state, run.status.reason) == (State.PAUSED, "it was interrupted")
    assert run.metrics()["step"].max() > 50
    monkeypatch.setattr(
        queue, "_start", lambda runs: worker.carry_out([Reporter(run) for run in runs], digits)
    )
    jobs.resume(run)
    whole = worker.run_here(small(), root, "whole", train_on=digits)
    assert run.status.summary == whole.status.summary


def test_a_cancel_while_a_pause_is_carried_out_counts(root, digits, monkeypatch):
    from bnviz import checkpoint

    save = checkpoint.save

    def slow(path, state):
        save(path, state)
        (path.parent / "control" / jobs.CANCEL).touch()

    def ask(*arguments):
        [run_id] = list_run_ids(root)
        jobs.pause(open_run(root / run_id))

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(Reporter, "report", ask)
    run = worker.run_here(small(), root, "both", train_on=digits)
    assert run.status.state is State.CANCELLED


def test_a_copy_of_a_running_run_is_none_that_runs(root, tmp_path):
    original = start_long_run(root)
    directory = tmp_path / "elsewhere" / original.run_id
    shutil.copytree(original.paths.directory, directory)
    copy = open_run(directory)
    assert copy.status.state is State.RUNNING
    status = processes.true_status(copy)
    assert (status.state, status.reason) == (
        State.LOST,
        "it is a copy of a run that goes on elsewhere",
    )
    with pytest.raises(StoreError, match="LOST, so there is nothing to cancel"):
        jobs.cancel(copy)
    assert processes.true_status(original).state is State.RUNNING
    (tmp_path / "link").symlink_to(root)  # another path to the same folder is no copy
    alias = Run(tmp_path / "link" / original.run_id)
    assert processes.true_status(alias).state is State.RUNNING
