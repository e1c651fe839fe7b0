"""An update captured as one CUDA graph, which a GPU replays without waiting for Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bnviz.probe import PreActivations

Update = Callable[[torch.Tensor, PreActivations | None], torch.Tensor]
"""Trains on a minibatch, of which it gets the numbers of its examples, (m,). Returns the mean loss
before the update, (), and puts the pre-activations of its pass where they are wanted. Of R networks
the losses are (R,), and the numbers (R, m) where each has a minibatch of its own."""

Capture = Callable[[Callable[[], None], Sequence[torch.Generator]], Callable[[], None]]
"""Makes a function that repeats on the device what another one does there."""

WARM_UP = 3
"""Updates before a capture, in which libraries choose their kernels and allocate memory."""


class NotCapturedError(Exception):
    """The update cannot be captured, or does not compute the same; the message says why."""


def captured(
    update: Update,
    models: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    batch: torch.Tensor,
    generators: Sequence[torch.Generator],
    capture: Capture,
) -> Update:
    """The same update, captured. Models and optimizers are left as they were, but that the learning
    rates of the optimizers are tensors now: what is set later must be filled in.

    Args:
        models, optimizers: what the update changes.
        batch: a minibatch to try it on.
        generators: of random numbers that the update draws.
        capture: `capture_cuda`, but in tests.

    Raises:
        NotCapturedError: it cannot be; then all is as it was.
    """
    before = _State(models, optimizers, generators)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    values = [dict(group) for group in groups]
    chosen = batch.clone()
    seen: PreActivations = {}

    def on_chosen() -> None:
        loss.copy_(update(chosen, seen))

    def replayed(batch: torch.Tensor, wanted: PreActivations | None) -> torch.Tensor:
        chosen.copy_(batch)
        replay()
        if wanted is not None:
            wanted.update({layer: values.clone() for layer, values in seen.items()})
        return loss

    try:
        loss = update(batch, None).clone()
        expected = [loss.clone(), *before.now()]
        before.restore()
        for group in groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=batch.device)
            if "capturable" in group:
                group["capturable"] = True
        replay = capture(on_chosen, generators)
        before.restore()
        got = [replayed(batch, None).clone(), *before.now()]
        before.restore()
    except RuntimeError as error:  # what torch raises for all that a capture does not allow
        problem = str(error).partition("\n")[0]
    else:
        # One of several networks may have diverged, which is no fault of the others.
        if all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
            for a, b in zip(expected, got, strict=True)
        ):
            return replayed
        problem = "it computes something else"
    for group, own in zip(groups, values, strict=True):
        group.update(own)
    before.restore()
    raise NotCapturedError(problem)


def capture_cuda(
    run: Callable[[], None], generators: Sequence[torch.Generator]
) -> Callable[[], None]:
    """A CUDA graph of what `run` does."""
    usual, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(usual)
    with torch.cuda.stream(aside):
        run()
        # What waits for the device would spoil a capture, so it is found before.
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(WARM_UP - 1):
                run()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    usual.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.stream(usual), torch.cuda.graph(graph):  # a capture that fails leaves its own
        run()
    return graph.replay


class _State:
    """All that an update changes, as it is now."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        generators: Sequence[torch.Generator],
    ) -> None:
        self._optimizers = optimizers
        own = [t for model in models for t in model.state_dict().values()]
        self._tensors = {id(t): (t, t.clone()) for t in [*own, *self._of_optimizers()]}
        self._generators = [(generator, generator.get_state()) for generator in generators]

    def _of_optimizers(self) -> list[torch.Tensor]:
        states: list[Any] = [s for o in self._optimizers for s in o.state.values()]
        return [v for state in states for v in state.values() if isinstance(v, torch.Tensor)]

    def now(self) -> list[torch.Tensor]:
        """Copies of the tensors of models and optimizers."""
        return [tensor.clone() for tensor, _ in self._tensors.values()]

    def restore(self) -> None:
        """As it was. What an optimizer has made meanwhile begins with zeros."""
        for tensor in self._of_optimizers():
            if id(tensor) not in self._tensors:
                tensor.zero_()
        for tensor, value in self._tensors.values():
            tensor.copy_(value)
        for generator, state in self._generators:
            generator.set_state(state)
