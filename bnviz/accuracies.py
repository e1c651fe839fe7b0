"""Test accuracies of a finished run by what its normalization normalizes with: `inference.json`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**15)]


class Accuracies(BaseModel):
    """Fractions of test examples that are classified correctly: in batches, and one at a time."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    in_batches: Fraction
    alone: Fraction


class Inference(BaseModel):
    """The content of `inference.json` (`bnviz.inference.accuracies` measures it).

    `step` counts the updates of the network; the population statistics are over `batches`
    minibatches of `batch_size` training examples. The accuracies are over `examples` test examples
    in batches of `test_batch_size`, and over `examples_alone` of them one at a time.
    `logit_difference` is the largest one between the folded network and the one with population
    statistics; `not_folded` says why there is no folded one.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    step: Count
    batches: Annotated[Count, Field(ge=1)]
    batch_size: Annotated[Count, Field(ge=1)]
    test_batch_size: Annotated[Count, Field(ge=1)]
    examples: Annotated[Count, Field(ge=1)]
    examples_alone: Annotated[Count, Field(ge=1)]
    batch_statistics: Accuracies
    moving_averages: Accuracies
    population_statistics: Accuracies
    folded: Accuracies | None = None
    logit_difference: Annotated[float, Field(ge=0)] | None = None
    not_folded: Annotated[str, Field(max_length=1_000)] = ""
