"""What happens to a run when things break: nothing that was recorded is lost, the state shown is
true, and the run goes on to the very end that it would have had."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import unittest.mock

import pandas as pd
import pytest
import torch

from bnviz import checkpoint, jobs, queue
from bnviz.processes import process_started, true_status
from bnviz.status import State
from bnviz.store import Run
from bnviz.trace import TraceWriter

from .conftest import small
from .zygote import Zygote

TRACED = {
    "FLUSH_INTERVAL_S": 0,
    "CHECKPOINT_INTERVAL_S": 0,
    "CHECKPOINT_SHARE": 1e9,
    "FLUSH_SHARE": 1e9,
    "PROGRESS_INTERVAL_S": 1e9,
}
"""What is recorded is written, and a checkpoint saved, at each evaluation and at no other time, so
that the file operations are the same each time."""


@pytest.fixture(scope="module")
def zygote():
    return Zygote.shared()


@pytest.fixture
def create(root):
    """Make a run that waits in the queue; nothing starts it."""

    def create(**overrides):
        settings = {"training__steps": 9, "training__evaluations": 3, "trace__records": 3}
        settings |= {"model__hidden": [3, 2], "training__batch_size": 20, "trace__probe_size": 20}
        with queue.locked(root):
            return Run(jobs.create(small(**settings | overrides), root, "test").directory)

    return create


def tables(run):
    """What a run recorded, without the times of day and the marks of its interruptions."""
    events = run.events()
    return {
        "metrics": run.metrics().drop(columns="wall_time_s"),
        "percentiles": run.percentiles(),
        "checks": run.checks(),
        "events": events[events["name"] != "resumed"].drop(columns="wall_time_s"),
    }


def assert_same_end(run, reference):
    for name, expected in tables(reference).items():
        recorded = tables(run)[name]
        pd.testing.assert_frame_equal(
            recorded.reset_index(drop=True), expected.reset_index(drop=True), obj=name
        )
    ours, theirs = (checkpoint.load(r.paths.checkpoint)["model"] for r in (run, reference))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert run.status.summary == reference.status.summary
    assert run.damaged == set()


def assert_recorded_is_part_of(before, reference):
    """Every row that was there is a row of the uninterrupted run."""
    for name, rows in before.items():
        merged = rows.merge(tables(reference)[name], how="left", indicator=True)
        assert (merged["_merge"] == "both").all(), name


def continued(zygote, run, **order):
    """Resume a run, as the page does, and carry it on."""
    with unittest.mock.patch.object(queue, "advance"):  # it would start a worker of its own
        jobs.resume(run)
    return zygote.run(run.paths.directory, **order)


@pytest.fixture
def reference(zygote, create):
    run = create()
    assert zygote.run(run.paths.directory, MERGE_AFTER_PARTS=3, **TRACED) == 0
    assert run.status.state is State.COMPLETED
    return run


SHARES = 4
"""Of the file operations, so that several processes can test them."""


def file_operations(run):
    return int(re.search(r"(\d+) file operations", run.paths.log.read_text())[1])


@pytest.mark.parametrize("first", range(1, SHARES + 1))
def test_killed_before_or_within_any_file_operation(zygote, create, reference, first):
    """Part writes, merges, checkpoints, status writes: each is cut once, all the way through."""
    operations = file_operations(reference)
    assert operations > 100
    for crash_at in range(first, operations + 1, SHARES):
        run = create()
        order = {"MERGE_AFTER_PARTS": 3, **TRACED}
        code = zygote.run(run.paths.directory, crash_at=crash_at, **order)
        # Statuses are written by the clock, so a run may have a few operations less than the one
        # that was counted.
        assert code == -signal.SIGKILL or (code == 0 and crash_at > operations - 20)
        if run.status.state is not State.COMPLETED:
            before = tables(run)
            state = true_status(run).state
            # Until the worker has named itself, the run still waits in the queue.
            assert state is State.LOST or (state is State.QUEUED and run.status.pid is None)
            assert_recorded_is_part_of(before, reference)
            if state is State.LOST:
                assert continued(zygote, Run(run.paths.directory), **order) == 0
            else:
                assert zygote.run(run.paths.directory, **order) == 0
        assert run.status.state is State.COMPLETED
        assert_same_end(Run(run.paths.directory), reference)
        assert list(run.paths.directory.rglob(".*")) == []


def test_killed_again_while_it_recovers(zygote, create, reference):
    chance = random.Random(0)
    order = {"MERGE_AFTER_PARTS": 3, **TRACED}
    for _ in range(15):
        run = create()
        zygote.run(run.paths.directory, crash_at=chance.randint(10, 70), **order)
        for _ in range(2):
            continued(zygote, Run(run.paths.directory), crash_at=chance.randint(3, 60), **order)
            if run.status.state is State.COMPLETED:
                break
        else:
            assert continued(zygote, Run(run.paths.directory), **order) == 0
        assert_same_end(Run(run.paths.directory), reference)


def test_killed_at_random_moments_of_longer_runs(zygote, create):
    often = {
        "FLUSH_INTERVAL_S": 0.01,
        "CHECKPOINT_INTERVAL_S": 0.03,
        "CHECKPOINT_SHARE": 1.0,
        "FLUSH_SHARE": 1e9,
        "PROGRESS_INTERVAL_S": 0.01,
    }
    longer = {"training__steps": 1500, "training__evaluations": 30, "trace__records": 60}
    expected = create(**longer)
    assert zygote.run(expected.paths.directory, **often) == 0
    chance = random.Random(1)
    kills = 0
    while kills < 60:
        run = create(**longer)
        for _ in range(8):
            pid = zygote.start(run.paths.directory, **often)
            time.sleep(chance.uniform(0.02, 0.2))
            os.kill(pid, signal.SIGKILL)
            if zygote.wait(pid) == 0:
                break
            kills += 1
            before = Run(run.paths.directory).metrics()
            assert not before.duplicated(["step", "split"]).any()
        if run.status.state is not State.COMPLETED:
            assert continued(zygote, run, **often) == 0
        assert_same_end(Run(run.paths.directory), expected)


def test_the_disk_is_full_from_any_write_on(zygote, create, reference):
    order = {"MERGE_AFTER_PARTS": 3, **TRACED}
    reasons = set()
    for full_at in range(2, file_operations(reference), 3):
        run = create()
        assert zygote.run(run.paths.directory, full_at=full_at, **order) in (0, 1)
        status = true_status(run)
        if status.state is State.COMPLETED:
            continue  # nothing was left to write
        assert status.state in (State.PAUSED, State.LOST), full_at
        if status.state is State.PAUSED:
            reasons.add(status.reason)
            assert not run.paths.reserve.exists()
        assert_recorded_is_part_of(tables(Run(run.paths.directory)), reference)
        assert continued(zygote, Run(run.paths.directory), **order) == 0
        assert_same_end(Run(run.paths.directory), reference)
    assert reasons == {"No space left on device: make space, then resume"}


def test_the_disk_turns_read_only(zygote, create, reference):
    """Not even the status can say so, so the run is LOST; what was recorded is there."""
    order = {"MERGE_AFTER_PARTS": 3, **TRACED}
    for read_only_at in range(3, file_operations(reference), 12):
        run = create()
        assert zygote.run(run.paths.directory, read_only_at=read_only_at, **order) in (0, 1)
        if true_status(run).state is State.COMPLETED:
            continue
        assert true_status(run).state is State.LOST
        assert_recorded_is_part_of(tables(Run(run.paths.directory)), reference)
        assert continued(zygote, Run(run.paths.directory), **order) == 0
        assert_same_end(Run(run.paths.directory), reference)


def test_a_missing_permission_fails_in_words(zygote, create, reference):
    run = create()
    assert zygote.run(run.paths.directory, denied="percentiles", **TRACED) == 0
    assert run.status.state is State.FAILED
    assert "Permission denied" in run.status.error.message
    assert "give this user the right to write there, then resume" in run.status.error.message
    assert continued(zygote, Run(run.paths.directory), **TRACED) == 0
    assert_same_end(Run(run.paths.directory), reference)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root can make a small disk, and not in every container")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_small_disk_fills_up_and_is_given_space(zygote, create, small_disk):
    """The same on a real file system, where the kernel says what is full."""
    longer = {"training__steps": 4000, "training__evaluations": 200, "trace__records": 1000}
    often = {
        "FLUSH_INTERVAL_S": 0.02,
        "CHECKPOINT_INTERVAL_S": 0.2,
        "CHECKPOINT_SHARE": 1.0,
        "FLUSH_SHARE": 1e9,
    }
    expected = create(**longer)
    assert zygote.run(expected.paths.directory, **often) == 0
    run = create(**longer)
    directory = small_disk / run.run_id
    shutil.move(run.paths.directory, directory)
    run = Run(directory)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(500_000))
    run.paths.log.write_bytes(b"x" * 8_132)  # its end lies in a block that the traceback fills
    assert zygote.run(directory, **often) == 0
    status = true_status(run)
    assert (status.state, status.reason) == (
        State.PAUSED,
        "No space left on device: make space, then resume",
    )
    assert status.step < 4000
    assert_recorded_is_part_of(tables(run), expected)
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert continued(zygote, run, **often) == 0
    assert_same_end(Run(directory), expected)


def test_sigterm_pauses_with_a_checkpoint(zygote, create):
    run = create(training__steps=1_000_000)
    pid = zygote.start(run.paths.directory)
    while run.status.step < 500:
        time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)
    assert zygote.wait(pid) == 0
    status = run.status
    assert (status.state, status.pid) == (State.PAUSED, None)
    assert status.reason == "the system asked its process to end"
    assert checkpoint.load(run.paths.checkpoint)["step"] == status.step
    assert process_started(pid) is None


def test_paused_and_resumed_it_ends_as_if_never_interrupted(zygote, create):
    longer = {"training__steps": 1500, "training__evaluations": 20, "trace__records": 50}
    expected, run = create(**longer), create(**longer)
    assert zygote.run(expected.paths.directory) == 0
    pid = zygote.start(run.paths.directory)
    while run.status.step < 200:
        time.sleep(0.01)
    jobs.pause(run)
    assert zygote.wait(pid) == 0
    assert run.status.state is State.PAUSED
    assert run.status.step < 1500
    assert continued(zygote, run) == 0
    assert_same_end(Run(run.paths.directory), expected)
    [resumed] = run.events().query("name == 'resumed'")["step"]
    assert 200 <= resumed < 1500


def test_a_changed_learning_rate_is_repeated_after_a_kill(zygote, create):
    """The kill comes after the change and before the next checkpoint."""
    longer = {"training__steps": 3000, "training__evaluations": 20, "trace__records": 50}
    run = create(**longer)
    rare = {"FLUSH_INTERVAL_S": 0.01, "CHECKPOINT_INTERVAL_S": 1e9, "FLUSH_SHARE": 1e9}
    pid = zygote.start(run.paths.directory, **rare)
    while run.status.step < 300:
        time.sleep(0.01)
    jobs.set_learning_rate(run, 0.5)
    while run.events().empty:
        time.sleep(0.01)
    [event] = run.events().itertuples()
    assert (event.name, event.value) == ("learning_rate", 0.5)
    while run.status.step < event.step + 200:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    zygote.wait(pid)
    assert continued(zygote, run) == 0
    again = Run(run.paths.directory).metrics()
    rates = again.query(f"step > {event.step}")["learning_rate"]
    assert set(rates) == {0.5}
    assert set(again.query(f"step < {event.step}")["learning_rate"].astype(float).round(6)) == {
        0.15
    }
    # It ends as one that is never killed and has the same change at the same step.
    expected = create(**longer)
    planned = TraceWriter(expected.paths)
    planned.add_event(step=event.step, name="learning_rate", value=0.5, wall_time_s=0.0)
    planned.flush()
    assert zygote.run(expected.paths.directory) == 0
    assert_same_end(Run(run.paths.directory), expected)


def test_a_continued_run_repeats_itself_before_it_takes_a_new_learning_rate(zygote, create):
    """Else what it recorded before the kill would not be its own history."""
    longer = {"training__steps": 3000, "training__evaluations": 20, "trace__records": 50}
    run, expected = create(**longer), create(**longer)
    rare = {"FLUSH_INTERVAL_S": 0, "CHECKPOINT_INTERVAL_S": 1e9, "FLUSH_SHARE": 1e9}
    pid = zygote.start(run.paths.directory, **rare)
    while len(run.metrics()) < 20:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    zygote.wait(pid)
    before = tables(Run(run.paths.directory))
    recorded_to = before["metrics"]["step"].max()
    with unittest.mock.patch.object(queue, "advance"):
        jobs.resume(run)
    run.paths.control.mkdir(exist_ok=True)
    (run.paths.control / jobs.LEARNING_RATE).write_text("0.5")
    assert zygote.run(run.paths.directory, **rare) == 0
    [event] = run.events().query("name == 'learning_rate'").itertuples()
    assert event.step >= recorded_to
    assert zygote.run(expected.paths.directory) == 0
    same = f"step <= {event.step}"
    pd.testing.assert_frame_equal(
        tables(run)["percentiles"].query(same), tables(expected)["percentiles"].query(same)
    )
    last = tables(run)["metrics"].iloc[-1]["loss"], tables(expected)["metrics"].iloc[-1]["loss"]
    assert last[0] != last[1]


def cut_with_two_checkpoints(zygote, create):
    """A run that was killed when two checkpoints were there, of different steps."""
    for crash_at in range(60, 100):
        run = create()
        zygote.run(run.paths.directory, crash_at=crash_at, MERGE_AFTER_PARTS=3, **TRACED)
        newer, older = run.paths.checkpoint, checkpoint.previous(run.paths.checkpoint)
        if older.exists() and checkpoint.load(older)["step"] < checkpoint.load(newer)["step"]:
            return run
    raise AssertionError("there were never two")


@pytest.mark.parametrize(
    "content", [b"", b"PK nonsense", b"\x80\x05K\x01.", "truncated", "flipped"]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(zygote, create, reference, content):
    run = cut_with_two_checkpoints(zygote, create)
    path = run.paths.checkpoint
    whole = path.read_bytes()
    if content == "truncated":
        content = whole[: len(whole) // 2]
    elif content == "flipped":  # within the numbers of the first layer
        weights = checkpoint.load(path)["model"]["layers.hidden1.linear.weight"].numpy().tobytes()
        at = whole.index(weights[:40])
        content = whole[:at] + bytes(40) + whole[at + 40 :]
    path.write_bytes(content)
    assert checkpoint.load(path)["step"] < 9
    assert continued(zygote, run, **TRACED) == 0
    assert_same_end(Run(run.paths.directory), reference)


def test_checkpoints_that_cannot_be_read_at_all_fail_in_words(zygote, create):
    run = create()
    zygote.run(run.paths.directory, crash_at=60, **TRACED)
    for path in (run.paths.checkpoint, checkpoint.previous(run.paths.checkpoint)):
        path.write_bytes(b"nonsense")
    before = len(run.metrics())
    assert continued(zygote, run) == 0
    assert run.status.state is State.FAILED
    assert "retry the run to start it anew" in run.status.error.message
    assert len(Run(run.paths.directory).metrics()) == before


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'owned'}",)

    torch.save({"step": 1, "model": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot read checkpoint\.pt"):
        checkpoint.load(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "owned").exists()


def test_a_run_directory_that_is_moved_away_ends_the_worker_and_opens_elsewhere(
    zygote, create, tmp_path
):
    run = create(training__steps=1_000_000)
    pid = zygote.start(run.paths.directory, FLUSH_INTERVAL_S=0.05)
    while run.status.step < 200:
        time.sleep(0.01)
    elsewhere = tmp_path / "elsewhere" / run.run_id
    elsewhere.parent.mkdir()
    os.rename(run.paths.directory, elsewhere)
    assert zygote.wait(pid) == 0
    assert not run.paths.directory.exists()
    moved = Run(elsewhere)
    assert true_status(moved).state is State.LOST
    assert len(moved.metrics()) > 0
    pid = zygote.start(elsewhere)
    while moved.paths.log.read_text().count("training on") < 2:
        time.sleep(0.01)
    jobs.cancel(moved)
    assert zygote.wait(pid) == 0
    assert moved.status.state is State.CANCELLED


def test_a_run_directory_that_is_deleted_ends_the_worker(zygote, create):
    run, other = create(training__steps=1_000_000), create()
    pid = zygote.start(run.paths.directory, FLUSH_INTERVAL_S=0.05)
    while run.status.step < 200:
        time.sleep(0.01)
    while run.paths.directory.exists():  # it may be writing into it
        shutil.rmtree(run.paths.directory, ignore_errors=True)
    assert zygote.wait(pid) == 0
    assert not run.paths.directory.exists()
    assert zygote.run(other.paths.directory) == 0
    assert other.status.state is State.COMPLETED


def test_a_hanging_worker_is_noticed_and_can_be_cancelled(zygote, create, monkeypatch):
    from bnviz import processes

    run = create(training__steps=1_000_000)
    pid = zygote.start(run.paths.directory)
    while run.status.step < 100:
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    assert processes.silent_for_s(true_status(run)) is None
    monkeypatch.setitem(processes.SILENT_AFTER_S, State.RUNNING, 0.3)
    time.sleep(0.5)
    assert processes.silent_for_s(true_status(run)) > 0.3
    assert not processes.is_worker(pid)
    jobs.cancel(run)  # what is not a process for this run alone is asked, not killed
    assert process_started(pid) is not None
    monkeypatch.setattr(jobs, "is_worker", lambda pid: True)
    jobs.cancel(run)
    assert run.status.state is State.CANCELLED
    assert zygote.wait(pid) == -signal.SIGKILL


def test_a_learning_rate_request_written_by_hand_is_checked(zygote, create):
    run = create(training__steps=1_000_000)
    pid = zygote.start(run.paths.directory)
    while run.status.step < 50:
        time.sleep(0.01)
    for content in ("nan", "-1", "__import__('os')", "1e9", json.dumps({"a": 1})):
        (run.paths.control / jobs.LEARNING_RATE).write_text(content)
        while jobs.LEARNING_RATE in jobs.requests(run.paths):
            time.sleep(0.01)
    assert run.events().empty
    jobs.cancel(run)
    assert zygote.wait(pid) == 0
