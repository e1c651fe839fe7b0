"""Inference of stored runs: what a worker measures at the end, and exported networks."""

import unittest.mock

import pytest

from bnviz import inference, jobs, queue
from bnviz.processes import true_status
from bnviz.status import State
from bnviz.store import Run, StoreError
from bnviz.worker import Worker, run_here

from .conftest import small

QUICK = {"training__steps": 60, "trace__records": 0, "training__evaluations": 1}


@pytest.mark.parametrize("kind", ["batch", "none"])
def test_a_complete_run_with_statistics_of_the_batch_is_measured(root, digits, kind):
    run = run_here(small(**QUICK, model__normalization=kind), root, train_on=digits)
    assert run.status.state is State.COMPLETED
    found = run.inference()
    assert (found is not None) == (kind == "batch")
    if found:
        assert found.step == 60
        assert found.moving_averages.in_batches == run.status.test_accuracy


@pytest.mark.parametrize(
    ("ask", "state"), [(jobs.cancel, State.CANCELLED), (jobs.pause, State.PAUSED)]
)
def test_a_run_that_is_stopped_while_it_is_measured_goes_on_there(root, digits, ask, state):
    config = small(**QUICK)
    expected = run_here(config, root, train_on=digits)
    original = inference.population_statistics
    with queue.locked(root):
        run = Run(jobs.create(config, root, "stopped").directory)

    def asked_meanwhile(model, batches):
        ask(run)
        return original(model, batches)

    with unittest.mock.patch.object(inference, "population_statistics", asked_meanwhile):
        Worker(run, digits).carry_out()
    assert (true_status(run).state, run.status.step) == (state, 60)
    assert run.inference() is None
    metrics = run.metrics()
    with unittest.mock.patch.object(queue, "advance"):  # it would start a worker of its own
        jobs.resume(run)
    Worker(run, digits).carry_out()
    assert run.status.state is State.COMPLETED
    assert run.inference() == expected.inference()
    assert Run(run.paths.directory).metrics().equals(metrics)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_damaged_measurement_is_named(root, digits, content):
    run = run_here(small(**QUICK | {"training__steps": 1}), root, train_on=digits)
    run.paths.inference.write_bytes(content)
    with pytest.raises(StoreError, match=r"inference\.json is damaged; start the run again"):
        run.inference()
