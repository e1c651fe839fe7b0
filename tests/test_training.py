import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnviz import training
from bnviz.agenda import dense_at_start
from bnviz.config import RunConfig
from bnviz.data import DataError, ImageData
from bnviz.evaluation import evaluate
from bnviz.records import Diverged, Metrics, Percentiles, Progress
from bnviz.schema import GRID
from bnviz.trainer import Trainer, choose_device
from bnviz.training import proceed, train

from .conftest import small

CUDA = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
)


def finish(config, data):
    trainer = Trainer(config, data)
    return trainer, list(proceed(trainer))


def numbers(records):
    """Every number recorded, but the wall time; sorted, as when percentiles come depends on it."""
    values = []
    for record in records:
        if isinstance(record, Metrics):
            values.append((record.step, record.split, record.loss, record.accuracy))
        elif isinstance(record, Percentiles):
            values.append((record.step, record.layer, record.mean.tobytes(), record.grid.tobytes()))
    return sorted(values)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_same_config_and_seed_give_the_same_numbers(digits, normalization, device):
    config = small(model__normalization=normalization, training__device=device)
    first, second = (finish(config, digits)[1] for _ in range(2))
    assert numbers(first) == numbers(second)
    other = config.replace({"training.seed": 1})
    assert numbers(finish(other, digits)[1]) != numbers(first)


@pytest.mark.parametrize("normalization", ["none", "batch"])
@pytest.mark.parametrize("probe", ["heldout", "minibatch"])
@pytest.mark.parametrize("bn_mode", ["batch", "running"])
def test_tracing_changes_no_bit_of_the_weights(digits, normalization, probe, bn_mode):
    config = small(
        model__normalization=normalization,
        trace__probe=probe,
        trace__bn_mode=bn_mode,
        trace__probe_size=100,
    )
    traced, _ = finish(config, digits)
    untraced, _ = finish(config.replace({"trace.records": 0}), digits)
    for name, value in traced.model.state_dict().items():
        assert torch.equal(value, untraced.model.state_dict()[name]), name


def test_it_is_sgd_on_the_mean_loss_as_autograd_and_hand_have_it(digits):
    """Three updates, redone by hand with the plain formulas on the same batches."""
    config = small(model__normalization="none", training__steps=3, model__hidden=[8])
    trainer = Trainer(config, digits)
    w1 = trainer.model.layers.hidden1.linear.weight.detach().double()
    b1 = torch.zeros(8, dtype=torch.float64)
    w2 = trainer.model.output.weight.detach().double()
    b2 = torch.zeros(10, dtype=torch.float64)
    lr = config.optimizer.learning_rate
    for step in range(3):
        batch = trainer.batches[step]
        x, labels = digits.train_images[batch].flatten(1).double(), digits.train_labels[batch]
        h = 1 / (1 + torch.exp(-(x @ w1.T + b1)))  # (60, 8)
        p = torch.softmax(h @ w2.T + b2, dim=1)  # (60, 10)
        dz = (p - torch.nn.functional.one_hot(labels, 10)) / 60  # (60, 10)
        dh = dz @ w2 * h * (1 - h)  # (60, 8)
        w2, b2 = w2 - lr * dz.T @ h, b2 - lr * dz.sum(0)
        w1, b1 = w1 - lr * dh.T @ x, b1 - lr * dh.sum(0)
    for _ in proceed(trainer):
        pass
    torch.testing.assert_close(
        trainer.model.layers.hidden1.linear.weight.double(), w1, atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(trainer.model.output.bias.double(), b2, atol=1e-6, rtol=1e-5)


def test_records_cover_step_0_and_the_last_step(digits):
    config = small()
    trainer, records = finish(config, digits)
    tests = [r for r in records if isinstance(r, Metrics) and r.split == "test"]
    assert [r.step for r in tests] == dense_at_start(200, 4)
    for layer in ("hidden1", "hidden2", "hidden3"):
        steps = [r.step for r in records if isinstance(r, Percentiles) and r.layer == layer]
        assert steps == dense_at_start(200, 10)
        assert (steps[0], steps[-1]) == (0, 200)
    assert isinstance(records[-1], Progress)
    assert records[-1].step == trainer.step == 200


def test_the_last_test_record_is_the_accuracy_of_the_final_network(digits):
    trainer, records = finish(small(), digits)
    last = [r for r in records if isinstance(r, Metrics) and r.split == "test"][-1]
    trainer.model.eval()
    right = trainer.model(digits.test_images).argmax(1) == digits.test_labels
    assert last.accuracy == pytest.approx(right.double().mean().item())
    assert (last.loss, last.accuracy) == evaluate(
        trainer.model, digits.test_images, digits.test_labels
    )


def test_train_loss_is_the_mean_of_the_minibatches_since_the_last_record(digits):
    config = small(training__steps=50)
    every = config.replace({"trace.records": 10_000})
    each = {
        r.step: r.loss
        for r in finish(every, digits)[1]
        if isinstance(r, Metrics) and r.split == "train"
    }
    assert sorted(each) == list(range(1, 51))
    rows = [r for r in finish(config, digits)[1] if isinstance(r, Metrics) and r.split == "train"]
    for before, row in itertools.pairwise([None, *rows]):
        first = before.step + 1 if before else 1
        expected = np.mean([each[step] for step in range(first, row.step + 1)])
        assert row.loss == pytest.approx(expected, rel=1e-5)


def test_percentiles_are_numpys_of_the_pre_activations(digits):
    config = small(trace__probe_size=150, model__normalization="none")
    trainer = Trainer(config, digits)
    record = next(r for r in proceed(trainer) if isinstance(r, Percentiles))
    images = trainer.probe_images.flatten(1).numpy()
    layer = trainer.model.layers.hidden1.linear
    values = images @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()  # (150, 100)
    assert record.layer == "hidden1"
    np.testing.assert_allclose(record.grid, np.percentile(values, GRID, axis=0).T, atol=1e-5)
    np.testing.assert_allclose(record.mean, values.mean(0), atol=1e-5)
    np.testing.assert_allclose(record.std, values.std(0), atol=1e-5)


def test_the_held_out_sample_is_the_same_for_every_seed(digits):
    one, two = (Trainer(small(training__seed=seed), digits).probe_images for seed in (0, 1))
    assert torch.equal(one, two)


def test_the_minibatch_probe_looks_at_the_batch_about_to_be_trained_on(digits):
    config = small(trace__probe="minibatch", model__normalization="none")
    trainer = Trainer(config, digits)
    values = trainer.model.layers.hidden1.linear(digits.train_images[trainer.batches[0]].flatten(1))
    record = next(r for r in proceed(trainer) if isinstance(r, Percentiles))
    np.testing.assert_allclose(record.mean, values.detach().numpy().mean(0), atol=1e-6)


@pytest.mark.parametrize(
    "variant",
    [
        {"model__normalization": "none"},
        {"model__normalization": "batch"},
        {"model__normalization": "batch", "model__nonlinearity": "relu", "model__dropout": 0.5},
        {"model__normalization": "batch", "trace__bn_mode": "running"},
        {"model__normalization": "batch", "model__bn_placement": "after"},
        {"model__normalization": "layer", "trace__bn_mode": "running"},
        {"model__normalization": "batch_renorm"},
    ],
    ids=str,
)
def test_what_an_update_computes_anyway_is_what_the_probe_would_see(digits, variant, monkeypatch):
    config = small(trace__probe="minibatch", trace__records=100, training__steps=50, **variant)
    records = finish(config, digits)[1]
    assert {r.step for r in records if isinstance(r, Percentiles)} == set(range(51))
    monkeypatch.setattr(training, "_trains_on_what_is_observed", lambda config: False)
    assert numbers(records) == numbers(finish(config, digits)[1])


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(digits):
    config = small(
        model__normalization="none", model__nonlinearity="relu", optimizer__learning_rate=100.0
    )
    records = finish(config, digits)[1]
    diverged = records[-1]
    assert isinstance(diverged, Diverged)
    # The step is exact however rarely records are taken.
    every = finish(config.replace({"trace.records": 10_000}), digits)[1][-1]
    assert diverged == every
    finite = finish(config.replace({"training.steps": max(diverged.step, 1)}), digits)[1]
    losses = [r.loss for r in finite if isinstance(r, Metrics) and r.split == "train"]
    assert np.isfinite(losses).all()


def test_parameters_that_are_not_finite_end_the_run(digits):
    trainer = Trainer(small(), digits)
    records = proceed(trainer)
    next(records)
    with torch.no_grad():
        trainer.model.output.bias[0] = float("inf")
    assert isinstance(list(records)[-1], Diverged)


@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_it_learns_on_real_digits(mnist, normalization):
    config = small(
        training__steps=1_500,
        model__normalization=normalization,
        model__nonlinearity="relu",
        trace__records=0,
    )
    tests = [r for r in train(config, mnist) if isinstance(r, Metrics) and r.split == "test"]
    assert tests[0].accuracy < 0.2
    assert tests[-1].accuracy > 0.93


@given(st.integers(1, 10**6), st.integers(1, 3_000))
def test_steps_are_denser_at_the_start(steps, count):
    chosen = dense_at_start(steps, count)
    assert (chosen[0], chosen[-1]) == (0, steps)
    assert len(chosen) <= count + 1
    gaps = np.diff(chosen)
    assert (gaps > 0).all()
    assert (np.diff(gaps) >= -1).all()  # but for rounding, they only grow
    assert gaps.max(initial=0) <= 2 * steps / count + 1


def test_a_missing_gpu_is_answered_in_words():
    if torch.cuda.is_available():
        assert choose_device("auto").type == "cuda"
        return
    assert choose_device("auto").type == "cpu"
    with pytest.raises(RuntimeError, match=r"no CUDA device .* choose cpu or auto"):
        choose_device("cuda")


# Optimizers, schedules, dropout, convolutions -----------------------------------------------------


def rates(records):
    return {r.step: r.learning_rate for r in records if isinstance(r, Metrics)}


def test_the_schedule_is_in_force_and_recorded(digits):
    config = small(
        optimizer__learning_rate=0.4,
        optimizer__schedule="exponential",
        optimizer__decay_factor=0.5,
        optimizer__decay_steps=100,
        optimizer__warmup_steps=10,
    )
    recorded = rates(finish(config, digits)[1])
    for step, rate in recorded.items():
        assert rate == pytest.approx(0.4 * 0.5 ** (step / 100) * min(1, (step + 1) / 11)), step
    assert len(recorded) > 5


def test_a_changed_learning_rate_is_what_the_schedule_multiplies(digits):
    config = small(
        optimizer__schedule="exponential", optimizer__decay_factor=0.5, optimizer__decay_steps=50
    )
    trainer = Trainer(config, digits)
    trainer.planned_rates[100] = 0.2
    recorded = rates(proceed(trainer))
    assert recorded[200] == pytest.approx(0.2 * 0.5**4)
    assert recorded[50] == pytest.approx(0.15 * 0.5)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam"])
def test_l2_pulls_the_weights_and_nothing_else(digits, kind):
    """With no gradient, only the penalty moves anything."""
    rate = 0.15 if kind == "sgd" else 1e-6  # the others take steps of this size
    config = small(optimizer__kind=kind, optimizer__l2=0.01, optimizer__learning_rate=rate)
    trainer = Trainer(config, digits)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    for name, value in trainer.model.named_parameters():
        if name.endswith("weight") and value.dim() > 1:
            assert (value.abs() < before[name].abs()).double().mean() > 0.95
            if kind == "sgd":
                torch.testing.assert_close(value, before[name] * (1 - 0.15 * 0.01))
        else:
            assert torch.equal(value, before[name])


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_sutskevers(digits, nesterov):
    """v ← μv + g; w ← w − ηv, or with Nesterov's form w − η(g + μv) (Sutskever et al. 2013)."""
    config = small(optimizer__momentum=0.9, optimizer__nesterov=nesterov)
    trainer = Trainer(config, digits)
    weight = trainer.model.output.weight
    w, v = weight.detach().clone(), torch.zeros_like(weight)
    for step in range(3):
        gradient = torch.full_like(weight, 0.1 * (step + 1))
        for parameter in trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight.grad = gradient.clone()
        trainer.optimizer.step()
        v = 0.9 * v + gradient
        w = w - 0.15 * (gradient + 0.9 * v if nesterov else v)
    torch.testing.assert_close(weight.detach(), w)


VARIANTS = {
    "dropout": {"model__dropout": 0.5},
    "momentum": {"optimizer__momentum": 0.9, "optimizer__nesterov": True},
    "adam": {"optimizer__kind": "adam", "optimizer__learning_rate": 0.01},
    "adagrad": {"optimizer__kind": "adagrad", "optimizer__schedule": "cosine"},
    "cnn": {"model__kind": "cnn", "model__channels": [3, 4], "model__hidden": [8]},
    "renorm": {"model__normalization": "batch_renorm"},
    "whitening": {"model__normalization": "whitening", "model__hidden": [10]},
    "each step": {"trace__probe": "minibatch", "trace__records": 40},
    "shards": {"data__shuffling": "within_shards", "data__shard_size": 100},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_continued_or_observed_it_ends_the_same_to_the_bit(digits, variant):
    config = small(**{"training__steps": 40, **VARIANTS[variant]})
    whole, records = finish(config, digits)
    assert numbers(finish(config, digits)[1]) == numbers(records)
    part = Trainer(config, digits)
    for record in proceed(part):
        if record.step == 20 and isinstance(record, Progress) and record.complete:
            break
    continued = Trainer(config, digits)
    continued.restore(part.state())
    list(proceed(continued))
    unobserved, _ = finish(config.replace({"trace.records": 0}), digits)
    for trainer in (continued, unobserved):
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(value, whole.model.state_dict()[name]), name


@pytest.mark.parametrize("probe", ["heldout", "minibatch"])
def test_a_continued_run_records_what_a_whole_one_does(digits, probe, monkeypatch):
    config = small(training__steps=40, trace__probe=probe, trace__records=40)
    whole = numbers(finish(config, digits)[1])
    monkeypatch.setattr(training, "PROGRESS_INTERVAL_S", 0)  # so that there are states to take
    for cut in (7, 16):
        records, part = [], Trainer(config, digits)
        for record in proceed(part):
            records.append(record)
            if isinstance(record, Progress) and record.complete and record.step == cut:
                break
        continued = Trainer(config, digits)
        continued.restore(part.state())
        records += proceed(continued)
        assert sorted(set(numbers(records))) == whole


def test_a_fast_run_takes_its_records_before_there_are_too_many(digits, monkeypatch):
    """As on a device that does thousands of updates in a tenth of a second."""
    config = small(training__steps=700, training__evaluations=1, trace__records=7)
    usual = numbers(finish(config, digits)[1])
    monkeypatch.setattr(training, "PROGRESS_INTERVAL_S", 1e9)
    monkeypatch.setattr("bnviz.trainer.LOSSES", 10)
    assert numbers(finish(config, digits)[1]) == usual


def test_infinite_parameters_end_a_run_between_evaluations_too(digits):
    config = small(training__steps=400, training__evaluations=1, trace__records=400)
    never = dataclasses.replace(digits, train_labels=digits.train_labels.clamp(min=1))
    trainer = Trainer(config, never)
    for record in proceed(trainer):
        if record.step == 0 and isinstance(record, Progress) and record.complete:
            with torch.no_grad():  # an output that is never right, so the loss stays finite
                trainer.model.output.bias[0] = float("-inf")
    assert isinstance(record, Diverged)
    assert record.step <= 100


def test_two_runs_with_dropout_in_one_process_do_not_disturb_each_other(digits):
    configs = [small(model__dropout=0.5, training__steps=20, training__seed=s) for s in (1, 2)]
    alone = [numbers(finish(config, digits)[1]) for config in configs]
    together = zip(*(proceed(Trainer(c, digits)) for c in configs), strict=False)
    for n, records in enumerate(zip(*together, strict=True)):
        got = numbers(records)
        assert set(got) <= set(alone[n])
        assert len(got) > 5


def test_dropout_drops_its_share_of_hidden_activations_in_training_alone(digits):
    trainer = Trainer(small(model__dropout=0.25), digits)
    dropout = trainer.model.layers.hidden1.dropout
    ones = torch.ones(200, 500)
    kept = dropout(ones)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (kept == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    dropout.eval()
    assert dropout(ones) is ones


def test_dropout_goes_on_from_a_checkpoint_of_another_kind_of_device(digits):
    config = small(model__dropout=0.5)
    state = Trainer(config, digits).state()
    state |= {"device": "cuda", "dropout": [torch.zeros(16, dtype=torch.uint8)] * 3, "step": 0}
    trainer = Trainer(config, digits)
    trainer.restore(state)
    assert isinstance(list(proceed(trainer))[-1], Progress)


def test_data_that_does_not_fit_the_configuration_is_refused(digits):
    with pytest.raises(DataError, match=r"batch_size = 601: there are 600 training examples"):
        Trainer(small(training__batch_size=601), digits)
    one = dataclasses.replace(
        digits, test_images=digits.test_images[:1], test_labels=digits.test_labels[:1]
    )
    with pytest.raises(DataError, match="there is one test image"):
        Trainer(small(), one)
    config = RunConfig().replace({"model.kind": "cnn"})
    little = ImageData(
        digits.train_images[..., :6, :6],
        digits.train_labels,
        digits.test_images[..., :6, :6],
        digits.test_labels,
    )
    with pytest.raises(DataError, match="conv2 sees images of 1×1 and needs 6×6"):
        Trainer(config, little)


def test_a_small_cnn_learns_real_digits_better_than_an_mlp(mnist):
    """A feature map has one γ and β, so BN adds 2 parameters for each and drops the bias."""
    config = small(
        model__kind="cnn",
        model__channels=[8, 16],
        model__hidden=[100],
        model__nonlinearity="relu",
        training__steps=300,
        training__evaluations=1,
        trace__records=1,
        trace__probe_size=20,
    )
    trainer = Trainer(config, mnist)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    assert parameters == 8 * 25 + 16 * 8 * 25 + 100 * 256 + 2 * (8 + 16 + 100) + 1_010
    records = list(proceed(trainer))
    seen = {r.layer: r.grid.shape for r in records if isinstance(r, Percentiles)}
    assert seen == {"conv1": (8, 15), "conv2": (16, 15), "hidden1": (100, 15)}
    assert [r for r in records if isinstance(r, Metrics) and r.split == "test"][-1].accuracy > 0.96


def test_a_checkpoint_of_the_first_version_goes_on(digits):
    """It has no learning rate without schedule, no state of dropout, and torch's instead."""
    part = Trainer(small(), digits)
    state = {**part.state(), "cpu_random": torch.get_rng_state()}
    del state["base_rate"], state["dropout"]
    continued = Trainer(small(), digits)
    continued.restore(state)
    assert numbers(proceed(continued)) == numbers(proceed(part))


def test_an_evaluation_ends_where_the_run_does(digits, monkeypatch):
    """Over images on a disk it may take an hour."""
    read = []

    def chunks(self):
        for number in range(1_000):
            read.append(number)
            yield digits.test_images[:10], digits.test_labels[:10]

    monkeypatch.setattr(ImageData, "test_chunks", chunks)
    monkeypatch.setattr(training, "PROGRESS_INTERVAL_S", -1)
    running = training.Training([Trainer(RunConfig(), digits)])
    for number, record in running.records():
        if isinstance(record, Progress) and not record.complete:
            running.leave(number)
    assert len(read) < 5
