"""What a step of training costs, and observing it: `python benchmarks/bench_training.py`.

The paper's MNIST network with BN, minibatches of 60, one thread, all in one process and in turns:
the loop of a PyTorch tutorial; the same with what people write to see percentiles; ours; and the
matrix products alone, the floor for all of them.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import Report, in_turns, ratio, spread
from bnviz import data
from bnviz.config import RunConfig
from bnviz.data import ImageData
from bnviz.records import Percentiles, Progress
from bnviz.store import RunPaths
from bnviz.trace import TraceWriter
from bnviz.trainer import Trainer
from bnviz.training import proceed

TURNS = 15
BATCH = 60
WANTED = torch.tensor([0.15, 0.5, 0.85])
FAR = 1_000_000
"""Steps of a run that is never trained to its end."""

Steps = Callable[[int], int]
"""Trains about so many steps, and returns how many."""


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = data.load_mnist()
    scratch = tempfile.TemporaryDirectory()
    # Name, what trains so many steps, and how many in a turn.
    ways: dict[str, tuple[Steps, int]] = {
        "ours": (ours(digits, records=0), 100),
        "matrix products alone": (matrix_products, 100),
        "tutorial loop": (tutorial(digits), 100),
        "tutorial loop, hooks and torch.quantile": (tutorial(digits, quantiles=True), 100),
        "tutorial loop, TensorBoard histograms of the layers": (
            tutorial(digits, histograms=Path(scratch.name) / "layers"),
            20,
        ),
        "ours, percentiles of all 300 units at each step": (
            ours(digits, records=FAR, probe="minibatch"),
            100,
        ),
        "ours, the same, stored": (
            ours(digits, records=FAR, probe="minibatch", folder=Path(scratch.name) / "run"),
            100,
        ),
    }
    calls = {name: lambda w=way, n=steps: w(n) for name, (way, steps) in ways.items()}
    seconds = in_turns(calls, TURNS)
    micro = {name: times * 1e6 for name, times in seconds.items()}
    bare = micro["ours"]
    report = Report("training")
    report.table(
        "A step",
        ("what", "µs a step (quartiles)", "÷ ours", "÷ matrix products"),
        [
            (name, spread(times), ratio(times, bare), ratio(times, micro["matrix products alone"]))
            for name, times in micro.items()
        ],
    )
    report.table("The default probe", *default_probe(digits))
    scratch.cleanup()


def matrix_products(steps: int) -> int:
    """All that a step of this network multiplies, forward and backward."""
    batch, widths = torch.randn(BATCH, 784), (784, 100, 100, 100, 10)
    weights = [torch.randn(out, into) for into, out in itertools.pairwise(widths)]
    values = [torch.randn(BATCH, width) for width in widths[1:]]
    inputs = [batch, *values[:-1]]
    for _ in range(steps):
        for value, weight in zip(inputs, weights, strict=True):
            torch.mm(value, weight.t())
        for gradient, value, weight in zip(values, inputs, weights, strict=True):
            torch.mm(gradient.t(), value)
            if value is not batch:
                torch.mm(gradient, weight)
    return steps


def tutorial(
    digits: ImageData, *, quantiles: bool = False, histograms: Path | None = None
) -> Steps:
    """The loop of PyTorch's tutorials, with what people add to see distributions."""
    layers: list[nn.Module] = [nn.Flatten()]
    for into in (784, 100, 100):
        layers += [nn.Linear(into, 100), nn.BatchNorm1d(100), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_of = nn.CrossEntropyLoss()
    loader = DataLoader(
        TensorDataset(digits.train_images, digits.train_labels), batch_size=BATCH, shuffle=True
    )
    seen: dict[str, torch.Tensor] = {}
    kept: list[dict[str, torch.Tensor]] = []
    numbers = itertools.count()
    if quantiles or histograms:
        for name, module in model.named_children():
            if isinstance(module, nn.Sigmoid):
                module.register_forward_pre_hook(
                    lambda _, args, name=name: seen.update({name: args[0].detach()})
                )
    writer = None
    if histograms:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(histograms))

    def batches() -> Iterator[list[torch.Tensor]]:
        while True:
            yield from loader

    endless = batches()

    def train(steps: int) -> int:
        for _ in range(steps):
            images, labels = next(endless)
            loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if quantiles:
                kept.append({n: torch.quantile(v, WANTED, dim=0) for n, v in seen.items()})
            if writer:
                for name, values in seen.items():
                    writer.add_histogram(name, values, next(numbers))
        if writer:
            writer.flush()  # its thread must not disturb those whose turn comes next
        return steps

    return train


def ours(
    digits: ImageData, *, records: int, probe: str = "heldout", folder: Path | None = None
) -> Steps:
    """The loop of a worker, with its table of percentiles where a folder is given."""
    config = RunConfig().replace(
        {
            "model.normalization": "batch",
            "training.batch_size": BATCH,
            "training.steps": FAR,
            "training.evaluations": 1,
            "trace.records": records,
            "trace.probe": probe,
        }
    )
    stream = proceed(Trainer(config, digits))
    writer = None
    if folder:
        folder.mkdir()
        writer = TraceWriter(RunPaths(folder))
    reached = 0

    def train(steps: int) -> int:
        nonlocal reached
        began = reached
        for record in stream:
            if writer and isinstance(record, Percentiles):
                writer.add_percentiles(**vars(record))
            if isinstance(record, Progress) and record.step >= began + steps:
                break
        reached = record.step
        if writer:
            writer.flush()
        return reached - began

    return train


def default_probe(digits: ImageData) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """A tenth of the preset `figure1` with its usual density of records, and without any."""
    base = RunConfig().replace({"model.normalization": "batch", "training.evaluations": 1})
    steps = base.training.steps // 10
    configs = {
        records: base.replace({"training.steps": steps, "trace.records": records})
        for records in (base.trace.records // 10, 0)
    }

    def whole(config: RunConfig) -> int:
        for record in proceed(Trainer(config, digits)):
            assert record.step <= steps
        return 1

    ways = {str(records): partial(whole, config) for records, config in configs.items()}
    seconds = in_turns(ways, 5)
    without = seconds["0"]
    header = ("records", "steps", "s (quartiles)", "÷ without")
    return header, [
        (records, steps, spread(times, 2), ratio(times, without))
        for records, times in seconds.items()
    ]


if __name__ == "__main__":
    main()
