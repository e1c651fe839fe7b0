"""The queue: order, slots, and that it goes on whatever is killed."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from bnviz import jobs, processes, queue, worker
from bnviz.processes import has_process, true_status
from bnviz.status import State
from bnviz.store import StoreError, open_run

from .conftest import small
from .test_jobs import wait_for


@pytest.fixture
def asleep(monkeypatch):
    """Runs start as processes that do nothing: for questions of order and number."""
    monkeypatch.setattr(queue, "GUARD", "sleep 300")


def every(root):
    return [open_run(path) for path in sorted(root.glob("2*"))]


def submit(root, count, **overrides):
    return [open_run(root / jobs.submit(small(**overrides), root, f"run{i}")) for i in range(count)]


def started(runs):
    return [has_process(run.status) for run in runs]


def test_the_others_wait_in_order(root, asleep, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "2")
    runs = submit(root, 5)
    assert started(runs) == [True, True, False, False, False]
    assert {true_status(run).state for run in runs} == {State.QUEUED}
    assert [run.run_id for run in queue.waiting(root)] == [run.run_id for run in runs[2:]]
    processes.kill(runs[0].status)
    wait_for(lambda: true_status(runs[0]).state is State.LOST)
    assert queue.advance(root) == [runs[2].run_id]
    assert started(runs) == [False, True, True, False, False]


def test_the_number_of_slots_can_be_changed_and_stays(root, asleep, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    runs = submit(root, 4)
    assert sum(started(runs)) == 1
    queue.set_slots(root, 3)
    assert sum(started(runs)) == 3
    assert queue.slots(root)["cpu"] == 3
    queue.set_slots(root, None)
    assert queue.slots(root)["cpu"] == 1
    for wrong in (0, -1, 1025):
        with pytest.raises(StoreError, match="must be a whole number from 1 to 1,024"):
            queue.set_slots(root, wrong)


@pytest.mark.parametrize("value", ["", "0", "-1", "many", "1e3", "99999"])
def test_a_number_of_slots_that_cannot_be_is_not_taken(root, monkeypatch, value):
    monkeypatch.setenv("BNVIZ_SLOTS", value)
    assert queue.slots(root)["cpu"] == len(os.sched_getaffinity(0))
    root.mkdir()
    (root / ".slots").write_text(value)
    assert queue.slots(root)["cpu"] == len(os.sched_getaffinity(0))


def test_waiting_runs_are_cancelled_paused_and_resumed_at_once(root, asleep, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    _, *waiting = submit(root, 4)
    jobs.cancel(waiting[0])
    jobs.pause(waiting[1])
    assert [run.status.state for run in waiting] == [State.CANCELLED, State.PAUSED, State.QUEUED]
    jobs.resume(waiting[1])  # to the end of the line
    jobs.resume(waiting[0])
    order = [waiting[2], waiting[1], waiting[0]]
    assert [run.run_id for run in queue.waiting(root)] == [run.run_id for run in order]
    with pytest.raises(StoreError, match="it goes on already"):
        jobs.resume(waiting[2])


def test_a_run_that_waits_can_be_deleted_and_a_started_one_cannot(root, asleep, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    first, second = submit(root, 2)
    jobs.delete(second)
    assert queue.waiting(root) == []
    with pytest.raises(StoreError, match="cancel it before"):
        jobs.delete(first)


def test_many_processes_at_once_start_no_more_than_the_slots(root, asleep):
    code = (
        "import sys, pathlib; sys.path.insert(0, '.')\n"
        "from tests.conftest import small\n"
        "from bnviz import jobs, queue\n"
        "queue.GUARD = 'sleep 300'\n"
        "for i in range(10): jobs.submit(small(), pathlib.Path(sys.argv[1]), 'many')"
    )
    command = [sys.executable, "-c", code, str(root)]
    crowd = [subprocess.Popen(command, env={**os.environ, "BNVIZ_SLOTS": "3"}) for _ in range(3)]
    assert [process.wait(timeout=120) for process in crowd] == [0, 0, 0]
    runs = every(root)
    assert len(runs) == 30
    assert sum(started(runs)) == 3
    assert len(queue.waiting(root)) == 27


def test_what_has_a_strange_name_or_is_a_link_is_none_of_the_queues_business(root, asleep):
    root.mkdir()
    (root / "20260101-000000-linked-abcdef").symlink_to("/etc")
    (root / "<script>alert(1)").mkdir()
    os.mkdir(os.fsencode(root) + b"/20260101-000000-\xff\xfe-abcdef")
    broken = root / "20260101-000000-broken-abcdef"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    (broken / "status.json").write_text(
        '{"state": "QUEUED", "steps": 1, "submitted_at": 1, "updated_at": 1}'
    )
    [run] = submit(root, 1)
    assert started([run]) == [True]
    assert queue.advance(root) == []


def test_a_killed_worker_makes_room_for_the_next_with_nobody_looking(root, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    first, second = submit(root, 2, training__steps=1_000_000)
    wait_for(lambda: first.status.state is State.RUNNING)
    os.kill(first.status.pid, signal.SIGKILL)
    wait_for(lambda: has_process(second.status), 30)
    assert true_status(first).state is State.LOST
    wait_for(lambda: second.status.state is State.RUNNING)
    assert psutil.Process(second.status.pid).nice() == worker.NICENESS
    jobs.resume(first)
    assert true_status(first).state is State.QUEUED
    jobs.cancel(second)
    assert jobs.wait_until_finished(second, 60) is State.CANCELLED
    wait_for(lambda: first.status.state is State.RUNNING)  # the second one's end starts it
    assert psutil.Process(first.status.pid).nice() == worker.NICENESS  # not added up
    jobs.cancel(first)
    assert jobs.wait_until_finished(first, 60) is State.CANCELLED


def test_queued_runs_are_carried_out_one_after_the_other_without_a_server(root, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    runs = submit(root, 3, training__steps=20)
    for run in runs:
        wait_for(lambda run=run: run.status.state is State.COMPLETED, 90)
    starts = [run.status.started_at for run in runs]
    ends = [run.status.finished_at for run in runs]
    assert starts == sorted(starts)
    assert all(start > end for start, end in zip(starts[1:], ends[:-1], strict=True))
    pids = [run.status.pid for run in runs]
    wait_for(lambda: not any(map(processes.process_started, pids)), 60)


def test_pausing_frees_the_slot_and_a_starting_run_can_be_paused(root, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    first, second = submit(root, 2, training__steps=1_000_000)
    time.sleep(0.5)
    jobs.pause(first)  # it is still loading
    wait_for(lambda: first.status.state is State.PAUSED, 60)
    wait_for(lambda: has_process(second.status), 60)
    jobs.cancel(second)
    assert jobs.wait_until_finished(second, 60) is State.CANCELLED


def test_a_worker_killed_before_it_has_named_itself_makes_room_too(root, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    first, second = submit(root, 2)
    guard = psutil.Process(first.status.pid)
    wait_for(lambda: guard.children() or first.status.pid != guard.pid)
    assert first.status.pid == guard.pid
    guard.children()[0].kill()
    wait_for(lambda: has_process(second.status))
    wait_for(lambda: true_status(first).state is State.LOST)


def test_when_the_machine_goes_down_no_waiting_run_is_started(root, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    first, second = submit(root, 2)
    wait_for(lambda: first.status.state is State.RUNNING)
    os.killpg(os.getpgid(first.status.pid), signal.SIGTERM)  # all get it, then all are killed
    wait_for(lambda: first.status.state is State.PAUSED, 60)
    time.sleep(1)
    assert (second.status.state, second.status.pid) == (State.QUEUED, None)


def test_a_run_that_cannot_start_is_not_in_the_way_of_others(root, asleep, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    first, blocked, third = submit(root, 3)
    blocked.paths.log.mkdir()
    processes.kill(first.status)
    wait_for(lambda: true_status(first).state is State.LOST)
    sentence = f"cannot start {blocked.run_id}: Is a directory"
    with pytest.raises(queue.CannotStart, match=sentence):
        queue.advance(root)
    assert started([blocked, third]) == [False, True]
    monkeypatch.setenv("BNVIZ_SLOTS", "2")
    [fourth] = submit(root, 1)
    assert started([fourth]) == [True]


def test_nothing_starts_on_a_full_disk(root, asleep, monkeypatch):
    monkeypatch.setattr(queue, "MIN_FREE_BYTES", 10**18)
    [run] = submit(root, 1)
    assert started([run]) == [False]
    assert "MB free, and runs start from" in queue.held_up(root)
    monkeypatch.undo()
    monkeypatch.setattr(queue, "_start", lambda run: None)
    assert queue.advance(root) == [run.run_id]


@pytest.mark.parametrize(
    "status",
    ["[" * 200_000, '{"state": "QUEUED", "queued_at": 1' + "0" * 400 + "}", '{"state": 1}', "7"],
)
def test_a_status_written_by_hand_does_not_stop_the_queue(root, asleep, status):
    root.mkdir()
    broken = root / "20260101-000000-broken-abcdef"
    broken.mkdir()
    (broken / "config.json").write_text("[" * 200_000)
    (broken / "status.json").write_text(status)
    [run] = submit(root, 1)
    assert started([run]) == [True]


def test_a_deleted_run_that_comes_back_takes_its_place_again(root, asleep, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "1")
    first, second = submit(root, 2)
    jobs.delete(second)
    processes.kill(first.status)
    wait_for(lambda: true_status(first).state is State.LOST)
    jobs.restore(root, second.run_id)
    assert started([second]) == [True]


def test_a_gpu_has_a_slot_of_its_own(root, asleep, monkeypatch):
    monkeypatch.setattr(queue, "has_cuda", lambda: True)
    assert queue.slots(root)["cuda"] == 1
    queue.set_slots(root, 5, "cpu")
    assert queue.slots(root) == {"cpu": 5, "cuda": 1}
    with pytest.raises(StoreError, match="device = tpu: this machine has cpu, cuda"):
        queue.set_slots(root, 5, "tpu")
    on_gpu = submit(root, 2, training__device="auto")
    on_cpu = submit(root, 1, training__device="cpu")
    assert started([*on_gpu, *on_cpu]) == [True, False, True]
