"""The paper's identities: they hold in real networks, and what violates them is reported."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnviz import identities, models
from bnviz.config import RunConfig
from bnviz.identities import Check, check
from bnviz.models.normalization import PerActivation
from bnviz.schema import IDENTITIES
from bnviz.store import open_run
from bnviz.trace import TraceWriter
from bnviz.trainer import Trainer
from bnviz.training import proceed
from bnviz.worker import run_here

from .conftest import small

TOLERANCE = 1e-8
SMALL = {"model__hidden": [12, 8], "training__batch_size": 30}
CNN = {"model__kind": "cnn", "model__channels": [3, 4], **SMALL}


def table(checks):
    """Errors by layer and identity: without and with the ε of the run."""
    return {(c.layer, c.identity): (c.error, c.error_with_epsilon) for c in checks}


def check_one(network, images, labels):
    [checks] = check([network], [(images, labels)])
    return checks


def trained(digits, **overrides):
    """A network in training, a few updates on."""
    settings = {"training__steps": 20, "training__evaluations": 1, "trace__records": 0}
    trainer = Trainer(small(**SMALL | settings | overrides), digits)
    for _ in proceed(trainer):
        pass
    return trainer


def batch(digits):
    return digits.train_images[:30], digits.train_labels[:30]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model__nonlinearity": "relu", "model__dropout": 0.5, "optimizer__kind": "adam"},
        {"model__bn_affine": "fixed", "model__initialization": "orthogonal"},
        {"training__batch_size": 2},  # BN takes all of the gradient away
        CNN,
        {**CNN, "model__bn_per": "activation"},
    ],
)
def test_they_hold_in_networks_while_they_train(digits, overrides):
    config = small(**SMALL | {"training__steps": 60, "trace__records": 0} | overrides)
    checks = [r for r in proceed(Trainer(config, digits)) if isinstance(r, Check)]
    assert [c.step for c in checks] == sorted(c.step for c in checks)
    assert {c.step for c in checks} == {0, 4, 15, 34, 60}
    assert {(c.layer, c.identity) for c in checks} == {
        (layer, identity) for layer in config.model.layers for identity in IDENTITIES
    }
    for c in checks:
        assert c.units > 0
        assert c.error < TOLERANCE, c
        if c.identity not in ("mean", "orthogonality"):
            assert c.error_with_epsilon > c.error, c  # the ε of a run is no rounding


@pytest.mark.parametrize(
    "overrides", [{"model__normalization": "none"}, {"model__bn_placement": "after"}]
)
def test_nothing_is_claimed_of_other_networks(digits, overrides):
    config = small(**SMALL | {"training__steps": 1} | overrides)
    assert not any(isinstance(r, Check) for r in proceed(Trainer(config, digits)))


@pytest.mark.parametrize("overrides", [{"model__dropout": 0.5}, CNN])
def test_a_run_with_the_checks_and_one_without_end_with_the_same_bits(
    digits, overrides, monkeypatch
):
    settings = {"training__steps": 40, "training__evaluations": 10} | overrides
    ends = []
    for applies in (True, False):
        monkeypatch.setattr(identities, "apply_to", lambda model, applies=applies: applies)
        ends.append(trained(digits, **settings).state())
    assert ends[0]["model"].keys() == ends[1]["model"].keys()
    for name, value in ends[0]["model"].items():
        assert torch.equal(value, ends[1]["model"][name]), name
    for mine, other in zip(ends[0]["dropout"], ends[1]["dropout"], strict=True):
        assert torch.equal(mine, other)


def test_checking_changes_nothing_in_the_network(digits):
    network = trained(digits, model__dropout=0.5).model
    network(batch(digits)[0]).sum().backward()
    before = copy.deepcopy(network.state_dict())
    gradients = [p.grad.clone() for p in network.parameters()]
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    first, second = (check_one(network, *batch(digits)) for _ in range(2))
    assert first == second  # so dropout is off
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), gradients, strict=True))
    assert [module.training for module in network.modules()] == modes
    assert not any(m._forward_hooks for m in network.modules())
    assert all(getattr(m, "track_running_stats", True) for m in network.modules())


def test_the_errors_with_epsilon_are_those_of_the_formulas(digits):
    """Algorithm 1 by hand: x̂ = (x − μ)/√(σ² + ε), and for the scaled weights ε counts a² times
    less."""
    network = trained(digits, model__bn_epsilon=0.01).model
    images, labels = batch(digits)
    errors = table(check_one(network, images, labels))
    x = images.flatten(1).double() @ network.layers.hidden1.linear.weight.detach().double().T
    variance = x.var(0, correction=0)
    shrunk = (variance + 0.01).sqrt() / (variance + 0.01 / 9).sqrt() - 1
    assert errors["hidden1", "output"][1] == pytest.approx(shrunk.max().item(), rel=1e-9)
    left = 0.01 / (variance + 0.01)
    assert errors["hidden1", "variance"][1] == pytest.approx(left.max().item(), rel=1e-9)


@pytest.mark.parametrize("overrides", [{}, CNN])
def test_the_gradient_by_the_weights_is_that_of_the_loss(digits, overrides):
    """⟨w, ∂ℓ/∂w⟩ with ε, by the derivative of the whole loss along w, by central differences."""
    network = trained(digits, model__bn_epsilon=0.5, **overrides).model
    images, labels = batch(digits)
    name = next(iter(network.named_layers()))
    reported = table(check_one(network, images, labels))[name, "orthogonality"][1]
    exact = copy.deepcopy(network).double().train()
    w = exact.layers.get_submodule(name).linear.weight

    def loss():
        return F.cross_entropy(exact(images.double()), labels)

    [gradient] = torch.autograd.grad(loss(), [w])
    along = []
    with torch.no_grad():
        for unit in range(len(w)):
            ends = []
            for factor in (1 + 1e-5, 1 - 1e-5):
                kept = w[unit].clone()
                w[unit] *= factor
                ends.append(loss().item())
                w[unit] = kept
            along.append((ends[0] - ends[1]) / 2e-5)
    sizes = w.flatten(1).norm(dim=1) * gradient.flatten(1).norm(dim=1)
    expected = (torch.tensor(along, dtype=torch.float64).abs() / sizes).max().item()
    assert reported == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "overrides", [{}, {"model__bn_affine": "fixed"}, CNN, {**CNN, "model__bn_per": "activation"}]
)
def test_several_networks_at_once_are_as_each_by_itself(digits, overrides):
    networks, examples = [], []
    for seed in range(3):
        trainer = trained(digits, training__seed=seed, **overrides)
        networks.append(trainer.model)
        examples.append(trainer.to_check())
    with torch.no_grad():  # constant units, all of one network's first layer
        networks[0].layers.get_submodule("hidden1").linear.weight[[1, 3]] = 0
        next(iter(networks[2].named_layers().values())).linear.weight.zero_()
    together = check(networks, examples, step=7)
    for network, own, got in zip(networks, examples, together, strict=True):
        alone = check_one(network, *own)
        assert [c.step for c in got] == [7] * len(alone)
        for one, other in zip(got, alone, strict=True):
            assert (one.layer, one.identity) == (other.layer, other.identity)
            assert (one.units, one.left_out) == (other.units, other.left_out)
            assert one.error == pytest.approx(other.error, abs=1e-12, nan_ok=True)
            epsilon = other.error_with_epsilon
            assert one.error_with_epsilon == pytest.approx(
                epsilon, rel=1e-6, abs=1e-12, nan_ok=True
            )


class DetachedStatistics(nn.BatchNorm1d):
    def forward(self, x):
        mean, variance = x.mean(0).detach(), x.var(0, correction=0).detach()
        return (x - mean) / torch.sqrt(variance + self.eps)


class UnbiasedVariance(nn.BatchNorm1d):
    def forward(self, x):
        return (x - x.mean(0)) / torch.sqrt(x.var(0) + self.eps)


class WithoutCentring(nn.BatchNorm1d):
    def forward(self, x):
        return x / torch.sqrt(x.var(0, correction=0) + self.eps)


class FixedStatistics(nn.BatchNorm1d):
    def forward(self, x):
        return (x - 0.1) / 0.7


class NotOfWu(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(torch.tanh(x))


@pytest.mark.parametrize(
    ("normalization", "violated"),
    [
        (nn.BatchNorm1d, set()),
        (DetachedStatistics, {"orthogonality"}),
        (UnbiasedVariance, {"variance"}),
        (WithoutCentring, {"mean"}),
        (FixedStatistics, set(IDENTITIES)),
        (NotOfWu, {"output", "input_gradient", "weight_gradient", "orthogonality"}),
    ],
)
def test_violations_are_reported_where_they_are(digits, normalization, violated):
    network = trained(digits).model
    network.layers.hidden2.normalization = normalization(8)
    errors = table(check_one(network, *batch(digits)))
    broken = {key for key, (error, _) in errors.items() if not error < 1e-4}
    assert broken == {("hidden2", identity) for identity in violated}
    assert all(error < TOLERANCE for key, (error, _) in errors.items() if key not in broken)


def test_a_bias_before_bn_violates_nothing(digits):
    """BN subtracts it (Section 3.2)."""
    network = trained(digits).model
    network.layers.hidden1.linear.bias = nn.Parameter(torch.linspace(-3, 3, 12))
    errors = table(check_one(network, *batch(digits)))
    assert all(error < TOLERANCE for error, _ in errors.values())


@pytest.mark.parametrize("per", ["feature_map", "activation"])
def test_what_is_constant_over_the_batch_is_left_out_and_counted(digits, per):
    network = trained(digits, **CNN, model__bn_per=per).model
    with torch.no_grad():
        network.layers.conv1.linear.weight[1] = 0
        network.layers.hidden1.linear.weight[[2, 5]] = 0
    images, labels = batch(digits)
    checks = {c.layer: c for c in check_one(network, images, labels)}
    assert (checks["hidden1"].units, checks["hidden1"].left_out) == (10, 2)
    conv = checks["conv1"]
    if per == "feature_map":
        assert (conv.units, conv.left_out) == (2, 1)
    else:  # at the edges all of these digits are empty
        assert isinstance(network.layers.conv1.normalization, PerActivation)
        patches = F.unfold(images.double(), 5)  # (N, 25, 24 · 24)
        moving = (patches != patches[:1]).any(0).any(0).sum().item()
        assert (conv.units, conv.left_out) == (2 * moving, 3 * 24 * 24 - 2 * moving)
    assert all(c.error < TOLERANCE for c in check_one(network, images, labels))


def test_a_layer_of_constant_units_has_no_errors(digits):
    network = trained(digits).model
    with torch.no_grad():
        network.layers.hidden1.linear.weight.zero_()
    checks = check_one(network, *batch(digits))
    assert {(c.units, c.left_out) for c in checks} == {(0, 12), (0, 8)}
    assert all(np.isnan([c.error, c.error_with_epsilon]).all() for c in checks)


def test_numbers_that_are_not_finite_are_reported_as_such():
    config = RunConfig().replace({"model.hidden": [3]})
    network = models.build(config.model, (1, 28, 28), 10, seed=0)
    with torch.no_grad():
        network.layers.hidden1.linear.weight[0] = torch.inf
    checks = check_one(network, torch.rand(5, 1, 28, 28), torch.arange(5))
    assert all(np.isnan(c.error) for c in checks)


def test_a_run_keeps_its_checks(digits, root):
    config = small(**SMALL | {"training__steps": 30, "training__evaluations": 3})
    run = run_here(config, root, train_on=digits)
    expected = [r for r in proceed(Trainer(config, digits)) if isinstance(r, Check)]
    stored = open_run(run.paths.directory).checks()
    by = ["layer", "identity", "step"]
    pd.testing.assert_frame_equal(
        stored,
        pd.DataFrame(expected).sort_values(by, ignore_index=True).astype(stored.dtypes.to_dict()),
    )


def test_a_run_without_the_table_opens_and_can_go_on(digits, root):
    """As an earlier version recorded it."""
    config = small(**SMALL | {"training__steps": 1})
    run = run_here(config, root, train_on=digits)
    for part in run.paths.table("checks").iterdir():
        part.unlink()
    run.paths.table("checks").rmdir()
    again = open_run(run.paths.directory)
    assert again.checks().empty
    assert list(again.checks().columns) == [f.name for f in Check.__dataclass_fields__.values()]
    assert not again.metrics().empty
    writer = TraceWriter(run.paths, from_step=1)
    trainer = Trainer(config, digits)
    for one in check_one(trainer.model, *trainer.to_check()):
        writer.add_check(**vars(one))
    writer.merge()
    assert len(again.checks()) == 2 * len(IDENTITIES)
