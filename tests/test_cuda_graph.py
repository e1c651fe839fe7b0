"""What surrounds a capture, with one that calls the update anew; and on a GPU with a real one."""

import pytest
import torch

from bnviz.cuda_graph import NotCapturedError, captured
from bnviz.records import Metrics, Percentiles, Progress
from bnviz.trainer import Trainer
from bnviz.training import Training, proceed

from .conftest import small

VARIANTS = {
    "none": {"model__normalization": "none"},
    "batch": {"model__normalization": "batch"},
    "relu, autograd": {"model__normalization": "layer", "model__nonlinearity": "relu"},
    "momentum": {"optimizer__momentum": 0.9, "optimizer__l2": 0.001},
    "adam": {"optimizer__kind": "adam", "optimizer__learning_rate": 2**-7},  # the same in float32
    "dropout": {"model__dropout": 0.5},
    "schedule": {"optimizer__schedule": "cosine"},
    "cnn": {"model__kind": "cnn", "model__channels": [3, 4], "model__hidden": [8]},
}


def repeated(run, generators):
    """In place of a CUDA graph: does the same again, after a few times that must leave no trace."""
    for _ in range(3):
        run()
    return run


def numbers(records):
    return sorted(
        (r.step, r.layer, r.grid.tobytes())
        if isinstance(r, Percentiles)
        else (r.step, r.split, r.loss, r.learning_rate)
        for r in records
        if isinstance(r, Metrics | Percentiles)
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_captured_run_is_the_same_to_the_bit(digits, variant, monkeypatch):
    config = small(
        training__steps=30, trace__probe="minibatch", trace__records=10, **VARIANTS[variant]
    )
    usual, other = Trainer(config, digits), Trainer(config, digits)
    expected = numbers(proceed(usual))
    got, saved = [], []
    for _, record in Training([other], repeated).records():
        assert other.note == ""
        got.append(record)
        if isinstance(record, Progress) and record.complete:
            [group, *_] = other.state()["optimizer"]["param_groups"]
            saved.append(group["lr"] == other.learning_rate and not group.get("capturable"))
    assert numbers(got) == expected
    assert len(saved) >= 5
    assert all(saved)
    for name, value in usual.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_what_computes_something_else_or_cannot_be_captured_is_not_used(digits):
    def wrong(run, generators):
        return lambda: None

    def impossible(run, generators):
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    config = small(training__steps=5, optimizer__momentum=0.9)
    usual = Trainer(config, digits)
    expected = numbers(proceed(usual))
    for capture, why in ((wrong, "something else"), (impossible, "is capturing")):
        trainer = Trainer(config, digits)
        trainer.model.train()
        with pytest.raises(NotCapturedError, match=why):
            captured(
                trainer.update,
                [trainer.model],
                [trainer.optimizer],
                trainer.batches[0],
                [],
                capture,
            )
        assert numbers(r for _, r in Training([trainer], capture).records()) == expected
        assert why in trainer.note
        assert "\n" not in trainer.note


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_gpu_a_graph_records_what_a_cpu_does(digits, variant):
    config = small(training__steps=30, **VARIANTS[variant])
    recorded = {}
    for device in ("cpu", "cuda"):
        trainer = Trainer(config.replace({"training.device": device}), digits)
        recorded[device] = {
            (r.step, r.split): r.loss for r in proceed(trainer) if isinstance(r, Metrics)
        }
        assert trainer.note == ""
    if variant != "dropout":  # other random numbers
        assert recorded["cuda"] == pytest.approx(recorded["cpu"], rel=1e-2)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"model__normalization": "whitening"}, "waits for the GPU"),
        ({"optimizer__kind": "adagrad"}, "counts its steps on the CPU"),
    ],
    ids=str,
)
def test_what_is_known_not_to_be_captured_is_not_tried(digits, setting, why):
    trainer = Trainer(small(**setting), digits)
    training = Training([trainer], lambda run, generators: pytest.fail("it was tried"))
    assert next(training.records())
    assert why in trainer.note
