"""Runs that train as one program: which do, and real processes with several of them."""

import os
import shutil

import pytest

from bnviz import jobs, processes, queue, reporter, together, worker
from bnviz.config import RunConfig
from bnviz.presets import presets
from bnviz.processes import has_process, true_status
from bnviz.reporter import Reporter
from bnviz.status import State
from bnviz.store import Run, open_run

from .conftest import small
from .test_jobs import wait_for

RATES = (0.05, 0.1, 0.2, 0.4)


@pytest.fixture
def on_cpu(monkeypatch):
    """As if this machine's processors were GPUs."""
    monkeypatch.setattr(queue, "TOGETHER_ON", {"cpu"})
    monkeypatch.setenv("BNVIZ_SLOTS", "1")


@pytest.fixture
def asleep(monkeypatch):
    monkeypatch.setattr(queue, "GUARD", "sleep 300")


def sweep(**settings):
    base = small(**settings)
    return [
        (f"lr-{rate}", base.replace({"optimizer.learning_rate": rate, "training.seed": i}))
        for i, rate in enumerate(RATES)
    ]


def submit(root, named):
    return [open_run(root / run_id) for run_id in jobs.submit_all(named, root, "a sweep")]


def states(runs):
    return [true_status(run).state for run in runs]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"optimizer.learning_rate": 3.0, "training.seed": 7, "model.init_std": 0.2}, True),
        ({"optimizer.momentum": 0.9, "optimizer.l2": 0.1, "optimizer.schedule": "cosine"}, True),
        ({"model.initialization": "he"}, True),
        ({"model.hidden": [100, 100]}, False),
        ({"model.normalization": "none"}, False),
        ({"model.nonlinearity": "relu"}, False),
        ({"optimizer.kind": "adam"}, False),
        ({"training.steps": 7}, False),
        ({"training.batch_size": 7}, False),
        ({"trace.records": 7}, False),
        ({"data.input": "grey"}, False),
        ({"training.device": "cpu"}, False),
    ],
    ids=str,
)
def test_what_may_differ(changes, same):
    config = RunConfig()
    assert (together.key(config) == together.key(config.replace(changes))) is same


@pytest.mark.parametrize(
    "changes",
    [
        {"model.kind": "cnn"},
        {"model.dropout": 0.5},
        {"model.normalization": "layer"},
        {"model.bn_placement": "after"},
    ],
    ids=str,
)
def test_other_networks_train_by_themselves(changes):
    assert together.key(RunConfig().replace(changes)) is None


def test_a_sweep_of_learning_rates_is_two_programs():
    keys = [together.key(config) for config in presets()["lr-sweep"].runs.values()]
    assert None not in keys
    assert len(keys) == 14
    assert len(set(keys)) == 2  # with BN and without


def test_large_networks_are_fewer():
    assert together.at_most(RunConfig()) == together.MOST == 64
    many_examples = RunConfig().replace({"training.batch_size": 5_000})
    assert together.at_most(many_examples) == 100_000_000 // (98_400 + 5_000 * 1_084) == 18
    assert together.at_most(RunConfig().replace({"model.hidden": [4096] * 20})) == 1


def test_they_share_a_process_and_a_slot(root, on_cpu, asleep):
    other = ("other", small(model__hidden=[5]))
    runs = submit(root, [*sweep()[:2], other, *sweep()[2:]])
    pids = [run.status.pid for run in runs]
    assert pids[0] is not None
    assert pids == [pids[0], pids[0], None, pids[0], pids[0]]
    assert all(processes.has_process(run.status) for run in runs if run.status.pid)
    assert queue.advance(root) == []  # the slot is taken


def test_no_more_than_make_one_program(root, on_cpu, asleep, monkeypatch):
    monkeypatch.setattr(together, "MOST", 2)
    runs = submit(root, sweep())
    assert [run.status.pid is not None for run in runs] == [True, True, False, False]


def test_one_that_is_far_ahead_does_not_wait_for_the_others(root, on_cpu, asleep):
    with queue.locked(root):
        runs = [Run(jobs.create(c, root, name).directory) for name, c in sweep()]
        for run, step in zip(runs, (0, 10, 150, 0), strict=True):  # of 200
            queue.write_status(run.paths, run.status.model_copy(update={"step": step}))
    assert queue.advance(root) == [runs[i].run_id for i in (0, 1, 3)]


def test_on_a_cpu_each_has_its_own_process(root, asleep, monkeypatch):
    monkeypatch.setenv("BNVIZ_SLOTS", "8")
    assert len({run.status.pid for run in submit(root, sweep())}) == len(RATES)


def test_one_whose_status_cannot_be_written_holds_up_no_other(root, on_cpu, asleep, monkeypatch):
    original = queue.write_status
    with queue.locked(root):
        runs = [Run(jobs.create(c, root, name).directory) for name, c in sweep()]

    def full(paths, status, **options):
        if paths.directory == runs[2].paths.directory and status.pid is not None:
            raise OSError(28, os.strerror(28))
        original(paths, status, **options)

    monkeypatch.setattr(queue, "write_status", full)
    assert queue.advance(root) == [runs[0].run_id]
    assert states(runs) == [State.QUEUED] * 4
    assert [run.status.pid is not None for run in runs] == [True, False, False, False]
    processes.kill(runs[0].status)
    wait_for(lambda: true_status(runs[0]).state is State.LOST)
    monkeypatch.setattr(queue, "write_status", original)
    assert queue.advance(root) == [run.run_id for run in runs[1:]]


def test_each_has_what_it_has_by_itself(root, on_cpu, digits):
    named = sweep()
    runs = submit(root, named)
    wait_for(lambda: set(states(runs)) == {State.COMPLETED}, 120)
    for run, (name, config) in zip(runs, named, strict=True):
        assert run.config == config
        alone = worker.run_here(config, root, f"alone-{name}")
        for table in ("metrics", "percentiles", "checks", "events"):
            own, expected = getattr(run, table)(), getattr(alone, table)()
            assert len(own) == len(expected)
            assert own["step"].equals(expected["step"])
        for split in ("train", "test"):
            losses = [r.metrics(split)["loss"].tolist() for r in (run, alone)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        medians = [r.percentiles("hidden3", 7)["p50"].tolist() for r in (run, alone)]
        assert medians[0] == pytest.approx(medians[1], abs=5e-3)
        assert run.status.summary.keys() == alone.status.summary.keys()
        assert run.inference() is not None
        for file in ("checkpoint", "log"):
            assert getattr(run.paths, file).is_file()
        sizes = [r.paths.checkpoint.stat().st_size for r in (run, alone)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
        assert "together with 3 others" in run.paths.log.read_text()


def test_one_is_cancelled_one_paused_one_gets_another_rate_and_one_goes_on(root, on_cpu):
    runs = submit(root, sweep(training__steps=1_000_000))
    cancelled, paused, changed, kept = runs
    wait_for(lambda: all(len(run.metrics()) > 0 for run in runs))
    jobs.cancel(cancelled)
    wait_for(lambda: true_status(cancelled).state is State.CANCELLED)
    jobs.pause(paused)
    jobs.set_learning_rate(changed, 0.7)
    wait_for(lambda: true_status(paused).state is State.PAUSED)
    wait_for(lambda: changed.rate_changes())
    assert changed.rate_changes()[0][1] == 0.7
    assert not has_process(paused.status)
    assert states([changed, kept]) == [State.RUNNING] * 2
    assert changed.status.pid == kept.status.pid
    assert kept.rate_changes() == []
    copy = root.parent / "elsewhere" / kept.run_id
    shutil.copytree(kept.paths.directory, copy)
    assert true_status(open_run(copy)).state is State.LOST
    reached = kept.status.step
    wait_for(lambda: kept.status.step > reached)
    before = len(cancelled.metrics())
    jobs.resume(paused)  # waits for the slot, which the others have
    assert true_status(paused).state is State.QUEUED
    jobs.cancel(changed)
    jobs.cancel(kept)
    wait_for(lambda: states([changed, kept]) == [State.CANCELLED] * 2)
    wait_for(lambda: true_status(paused).state is State.RUNNING)
    assert paused.status.step > 0
    assert len(cancelled.metrics()) == before


def test_all_go_on_together_after_a_kill(root, on_cpu):
    runs = submit(root, sweep(training__steps=3_000, training__evaluations=20))
    wait_for(lambda: all(run.status.step > 100 for run in runs), 120)
    processes.kill(runs[0].status)
    wait_for(lambda: states(runs) == [State.LOST] * 4)
    assert all(len(run.metrics()) > 0 for run in runs)
    with queue.locked(root):  # so that all wait when the queue advances
        for run in runs:
            jobs._settle(run, run.status, State.QUEUED)
    assert len(queue.advance(root)) == 4
    assert len({run.status.pid for run in runs}) == 1
    wait_for(lambda: set(states(runs)) == {State.COMPLETED}, 120)
    for run in runs:
        metrics = run.metrics()
        assert not metrics.duplicated(["step", "split"]).any()
        assert len(metrics.query("split == 'test'")) == 20 + 1


def test_one_with_a_damaged_checkpoint_fails_and_the_others_train(root, digits):
    with queue.locked(root):
        runs = [Run(jobs.create(c, root, name).directory) for name, c in sweep(training__steps=5)]
    runs[1].paths.checkpoint.write_bytes(b"nothing")
    worker.carry_out([Reporter(run) for run in runs], digits)
    assert states(runs) == [State.COMPLETED, State.FAILED, State.COMPLETED, State.COMPLETED]
    assert "cannot read checkpoint.pt" in runs[1].status.error.message


def test_where_one_cannot_be_written_the_others_train_on(root, digits, monkeypatch):
    with queue.locked(root):
        runs = [Run(jobs.create(c, root, name).directory) for name, c in sweep(training__steps=50)]

    reporters = [Reporter(run) for run in runs]
    original = Reporter.report

    def report(self):
        if self is reporters[2]:
            raise OSError(28, os.strerror(28))
        original(self)

    monkeypatch.setattr(Reporter, "report", report)
    worker.carry_out(reporters, digits)
    assert states(runs) == [State.COMPLETED, State.COMPLETED, State.PAUSED, State.COMPLETED]
    assert "make space" in runs[2].status.reason


@pytest.fixture
def waiting(root):
    """A group that waits, its settings free to choose."""

    def create(**settings):
        with queue.locked(root):
            return [Run(jobs.create(c, root, n).directory) for n, c in sweep(**settings)]

    return create


@pytest.mark.parametrize("runs", [1, 4])
def test_an_end_that_cannot_be_written_is_told_as_soon_as_it_can(
    waiting, digits, monkeypatch, runs
):
    """Of the last word on a run one attempt fails; the next one says it."""
    group = waiting(training__steps=20)[:runs]
    original, failures = reporter.write_status, []

    def failing(paths, status, **options):
        if paths.directory == group[0].paths.directory and status.finished_at and not failures:
            failures.append(status.state)
            raise OSError(5, os.strerror(5))
        original(paths, status, **options)

    monkeypatch.setattr(reporter, "write_status", failing)
    worker.carry_out([Reporter(run) for run in group], digits)
    assert failures == [State.COMPLETED]
    assert states(group) == [State.FAILED] + [State.COMPLETED] * (runs - 1)
    assert group[0].status.error.message == "[Errno 5] Input/output error"


def test_one_that_cannot_say_that_it_failed_says_so_when_it_can(waiting, digits, monkeypatch):
    group = waiting(training__steps=3_000, training__evaluations=1)
    first = group[0].paths
    original, told = reporter.write_status, {}

    def failing(paths, status, **options):
        if paths.directory == first.directory and 10 < group[1].status.step < 1_000:
            raise OSError(5, os.strerror(5))
        original(paths, status, **options)
        if paths.directory == first.directory:
            told[status.state] = group[1].status.step

    monkeypatch.setattr(reporter, "write_status", failing)
    monkeypatch.setattr(reporter, "STATUS_INTERVAL_S", 0.01)
    worker.carry_out([Reporter(run) for run in group], digits)
    assert states(group) == [State.FAILED] + [State.COMPLETED] * 3
    assert 1_000 <= told[State.FAILED] < 3_000  # while the others trained


def test_what_an_ended_run_had_left_is_written_by_nobody(waiting, digits, monkeypatch):
    """It may train in another process by then."""
    from bnviz.recorder import Recorder
    from bnviz.stack import Stack

    group = waiting(training__steps=1_000)
    update, take, kept = Stack.update, Recorder.take, []

    def failing(self, *arguments):
        if group[0].status.state is State.FAILED:
            raise MemoryError
        return update(self, *arguments)

    def one_fails(self, record):
        if self.reporter.run.run_id == group[0].run_id and record.step > 5:
            raise RuntimeError("its own")
        return take(self, record)

    monkeypatch.setattr(Stack, "update", failing)
    monkeypatch.setattr(Recorder, "take", one_fails)
    monkeypatch.setattr(Recorder, "keep", lambda self: kept.append(self.reporter.run.run_id))
    worker.carry_out([Reporter(run) for run in group], digits)
    assert states(group) == [State.FAILED] * 4
    assert [run.status.error.type for run in group] == ["RuntimeError"] + ["MemoryError"] * 3
    assert kept == [run.run_id for run in group]


def test_one_that_cannot_be_opened_keeps_no_other_from_training(root, on_cpu):
    with queue.locked(root):
        runs = [Run(jobs.create(c, root, n).directory) for n, c in sweep(training__steps=20)]
        runs[1].paths.log.mkdir()
    queue.advance(root)
    wait_for(lambda: states(runs).count(State.COMPLETED) == 3, 120)
    wait_for(lambda: true_status(runs[1]).state is State.LOST)
    assert "Is a directory" in runs[0].paths.log.read_text()


def test_what_befalls_all_ends_all(root, digits, monkeypatch):
    from bnviz.stack import Stack

    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr(Stack, "update", full)
    with queue.locked(root):
        runs = [Run(jobs.create(c, root, name).directory) for name, c in sweep()]
    worker.carry_out([Reporter(run) for run in runs], digits)
    assert states(runs) == [State.FAILED] * 4
    assert "the machine's memory is full" in runs[3].status.error.message
    assert len(runs[3].metrics()) > 0  # the first evaluation
