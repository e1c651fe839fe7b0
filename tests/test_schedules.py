"""The learning rate over the steps, against torch's own schedulers."""

import pytest
import torch

from bnviz import schedules
from bnviz.settings import OptimizerConfig

STEPS = 40


def factors(**settings):
    config = OptimizerConfig(decay_factor=0.8, decay_steps=7, **settings)
    return [schedules.factor(config, step, STEPS) for step in range(STEPS)]


def torchs(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_each_schedule_is_torchs():
    rate = torch.optim.lr_scheduler
    assert factors() == [1.0] * STEPS
    assert factors(schedule="exponential") == pytest.approx(
        torchs(lambda o: rate.ExponentialLR(o, 0.8 ** (1 / 7)))
    )
    assert factors(schedule="step") == pytest.approx(torchs(lambda o: rate.StepLR(o, 7, 0.8)))
    assert factors(schedule="cosine") == pytest.approx(
        torchs(lambda o: rate.CosineAnnealingLR(o, STEPS))
    )


def test_warm_up_rises_linearly_to_the_schedule():
    assert factors(warmup_steps=4)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    warm, cold = factors(schedule="cosine", warmup_steps=4), factors(schedule="cosine")
    assert warm[4:] == cold[4:]
    assert warm[1] == pytest.approx(0.4 * cold[1])


@pytest.mark.parametrize(
    ("settings", "constant"),
    [({}, True), ({"warmup_steps": 1}, False), ({"schedule": "step"}, False)],
)
def test_what_is_constant(settings, constant):
    assert schedules.is_constant(OptimizerConfig(**settings)) is constant
