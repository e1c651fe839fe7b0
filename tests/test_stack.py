"""Many runs as one program against each by itself."""

import weakref

import pytest
import torch

from bnviz import training
from bnviz.records import Diverged, Metrics, Percentiles, Progress
from bnviz.trainer import Trainer
from bnviz.training import Training, proceed

from .conftest import small
from .test_cuda_graph import repeated

OWN = [
    {"optimizer.learning_rate": 0.1},
    {"optimizer.learning_rate": 0.5, "model.init_std": 0.2},
    {"optimizer.learning_rate": 0.02, "model.initialization": "glorot"},
]
VARIANTS = {
    "none": {"model__normalization": "none"},
    "batch": {},
    "relu, fixed": {"model__nonlinearity": "relu", "model__bn_affine": "fixed"},
    "minibatch": {"trace__probe": "minibatch", "trace__records": 20},
    "minibatch, running": {"trace__probe": "minibatch", "trace__bn_mode": "running"},
    "running": {"trace__bn_mode": "running"},
    "momentum, L2": {"optimizer__momentum": 0.9, "optimizer__l2": 0.001},
    "adam": {"optimizer__kind": "adam", "optimizer__learning_rate": 0.01},
    "adagrad": {"optimizer__kind": "adagrad"},
    "schedule": {"optimizer__schedule": "cosine", "optimizer__warmup_steps": 3},
    "one layer": {"model__hidden": [7]},
}


def configs(own=OWN, **settings):
    config = small(**{"training__steps": 20, "model__hidden": [12, 8], **settings})
    rates = settings.get("optimizer__learning_rate")  # of Adam, which needs smaller ones
    return [
        config.replace({k: v for k, v in o.items() if not rates or "rate" not in k}) for o in own
    ]


def by_run(trainers, **options):
    records = [[] for _ in trainers]
    for number, record in Training(trainers, **options).records():
        records[number].append(record)
    return records


def compare(got, expected):
    """Within what another order of summation makes in a few steps."""
    metrics, others = (
        {(r.step, r.split): r for r in records if isinstance(r, Metrics)}
        for records in (got, expected)
    )
    assert metrics.keys() == others.keys()
    for key, record in metrics.items():
        assert record.loss == pytest.approx(others[key].loss, rel=1e-3), key
        assert record.learning_rate == others[key].learning_rate
        if record.accuracy is not None:
            assert record.accuracy == pytest.approx(others[key].accuracy, abs=0.011)  # two digits
    percentiles, others = (
        {(r.step, r.layer): r for r in records if isinstance(r, Percentiles)}
        for records in (got, expected)
    )
    assert percentiles.keys() == others.keys()
    for key, record in percentiles.items():
        for name in ("mean", "std", "grid"):
            torch.testing.assert_close(
                torch.tensor(getattr(record, name)),
                torch.tensor(getattr(others[key], name)),
                atol=2e-3, rtol=2e-3,
            )  # fmt: skip
    assert type(got[-1]) is type(expected[-1])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 2)], ids=["one order", "own orders"])
@pytest.mark.parametrize("capture", [None, repeated], ids=["", "captured"])
def test_each_run_is_what_it_is_by_itself(digits, variant, seeds, capture):
    own = [{**o, "training.seed": seed} for o, seed in zip(OWN, seeds, strict=True)]
    wanted = configs(own, **VARIANTS[variant])
    trainers = [Trainer(config, digits) for config in wanted]
    for trainer, config, got in zip(
        trainers, wanted, by_run(trainers, capture=capture), strict=True
    ):
        alone = Trainer(config, digits)
        compare(got, list(proceed(alone)))
        assert trainer.step == alone.step == 20
        state, expected = trainer.state(), alone.state()
        assert state["model"].keys() == expected["model"].keys()
        for name, value in state["model"].items():
            torch.testing.assert_close(
                value, expected["model"][name], atol=1e-3, rtol=1e-3, msg=name
            )


def test_one_that_diverges_ends_where_it_does_by_itself_and_harms_no_other(digits):
    own = [
        {"optimizer.learning_rate": 0.1},
        {"optimizer.learning_rate": 100.0, "optimizer.l2": 1.0},  # weights grow 99 times a step
        {"optimizer.learning_rate": 0.2},
    ]
    wanted = configs(own, training__steps=40, training__evaluations=1)
    trainers = [Trainer(config, digits) for config in wanted]
    together = by_run(trainers)
    alone = [list(proceed(Trainer(config, digits))) for config in wanted]
    assert together[1][-1] == alone[1][-1]
    assert isinstance(together[1][-1], Diverged)
    for number in (0, 2):
        compare(together[number], alone[number])
    assert [trainer.step for trainer in trainers][::2] == [40, 40]


@pytest.mark.parametrize("capture", [None, repeated], ids=["", "captured"])
def test_one_can_leave_and_the_last_one_goes_on_by_itself(digits, monkeypatch, capture):
    monkeypatch.setattr(training, "PROGRESS_INTERVAL_S", 0)
    wanted = configs()
    trainers = [Trainer(config, digits) for config in wanted]
    together = Training(trainers, capture)
    records = [[] for _ in trainers]
    left = {}
    for number, record in together.records():
        assert number not in left
        records[number].append(record)
        at = {0: 5, 1: 9}.get(number)
        if isinstance(record, Progress) and record.complete and record.step == at:
            together.leave(number)
            left[number] = trainers[number].state()
    assert [state["step"] for state in left.values()] == [5, 9]
    compare(records[2], list(proceed(Trainer(wanted[2], digits))))
    for number, state in left.items():  # what it had when it left goes on by itself
        continued = Trainer(wanted[number], digits)
        continued.restore(state)
        whole = records[number] + list(proceed(continued))
        compare(whole, list(proceed(Trainer(wanted[number], digits))))
        for name, value in trainers[number].model.state_dict().items():
            assert torch.equal(value, state["model"][name]), name  # it did not train on


def test_all_can_leave(digits):
    together = Training([Trainer(config, digits) for config in configs()])
    seen = []
    for number, _ in together.records():
        seen.append(number)
        together.leave(number)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("steps", [(0, 7, 7), (9, 4, 20), (13, 0, 6)])
def test_those_behind_catch_up_with_the_others(digits, steps, monkeypatch):
    """As after a kill between their checkpoints."""
    wanted = configs(trace__records=9, training__evaluations=3)
    states = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "PROGRESS_INTERVAL_S", 0)
        for config, until in zip(wanted, steps, strict=True):
            part = Trainer(config, digits)
            before = []
            for record in proceed(part):
                before.append(record)
                if isinstance(record, Progress) and record.complete and record.step == until:
                    break
            states.append((part.state(), before))
    trainers = [Trainer(config, digits) for config in wanted]
    for trainer, (state, _) in zip(trainers, states, strict=True):
        trainer.restore(state)
    for config, (_, before), got in zip(wanted, states, by_run(trainers), strict=True):
        compare(before + got, list(proceed(Trainer(config, digits))))


def test_other_configurations_are_no_one_program(digits):
    with pytest.raises(AssertionError):
        Training([Trainer(small(), digits), Trainer(small(model__hidden=[5]), digits)])


def test_a_state_holds_no_more_than_its_run(digits):
    trainers = [Trainer(config, digits) for config in configs()]
    by_run(trainers)
    state = trainers[0].state()
    momenta = [v for s in state["optimizer"]["state"].values() for v in s.values()]
    for value in [*state["model"].values(), state["losses"], *momenta]:
        if isinstance(value, torch.Tensor):
            assert value.untyped_storage().nbytes() <= max(8, value.nbytes)


def test_one_with_numbers_that_are_not_finite_keeps_no_other_from_a_graph(digits):
    trainers = [Trainer(config, digits) for config in configs()]
    with torch.no_grad():
        trainers[1].model.output.bias[0] = torch.nan
    records = by_run(trainers, capture=repeated)
    assert isinstance(records[1][-1], Diverged)
    assert [trainer.note for trainer in trainers] == [""] * 3
    assert [trainer.step for trainer in trainers][::2] == [20, 20]


def test_what_a_run_held_is_free_when_it_has_left(digits, monkeypatch):
    monkeypatch.setattr(training, "PROGRESS_INTERVAL_S", 0)
    trainers = [Trainer(config, digits) for config in configs()]
    left = weakref.ref(trainers[0])
    together = Training(trainers)
    del trainers
    for number, record in together.records():
        if number == 0 and record.step == 3:
            together.leave(0)
        if record.step == 10:
            break
    assert left() is None
