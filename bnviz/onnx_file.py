"""The network of a run as an ONNX file, for inference in other programs."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from bnviz.config import RunConfig
from bnviz.evaluation import evaluate, predict
from bnviz.inference import (
    FoldError,
    affine,
    fold,
    normalizations,
    population_statistics,
    training_batches,
    training_images,
    with_population,
)
from bnviz.models import Network
from bnviz.models.normalization import Whitening
from bnviz.trainer import Trainer

COMPARED = 8
"""Test images on which the file must compute what the network computes."""

TOLERANCE = 1e-3
"""Of the largest logit: what rounding may differ."""

SAME_ACCURACY = 0.01
"""By how much the accuracy may differ from the one measured at the end of the run."""


class ExportError(RuntimeError):
    """A network that cannot be exported; the message says why and what to do."""


def to_onnx(
    config: RunConfig,
    state: Mapping[str, Any],
    origin: Mapping[str, Any],
    measured: float | None = None,
) -> bytes:
    """An ONNX file with the input "images" (batch, channels, height, width), pixels in [0, 1] (as
    `data.input` of the configuration has them), and
    the output "logits" (batch, classes).

    Normalization with the statistics of a batch gets population statistics (Algorithm 2), and is
    folded into the weights where that is possible. The file is read again and compared with the
    network.

    Args:
        state: a checkpoint (`bnviz.checkpoint.load`).
        origin: where the network comes from; it goes along as JSON under the key `bnviz`.
        measured: accuracy of this network over the test set, where it is known.

    Raises:
        ExportError: checkpoint, configuration and data do not fit, or the file is not the network.
        DataError: the data cannot be made ready.
    """
    trainer = Trainer(config.replace({"training.device": "cpu"}))
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.step = range(config.training.steps + 1)[int(state["step"])]
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            "the checkpoint does not fit the configuration and its data set; a run on other data "
            "cannot be exported"
        ) from error
    model, how = for_inference(trainer)
    images = trainer.data.test_images
    if measured is not None:
        _, accuracy = evaluate(model, images, trainer.data.test_labels)
        if not abs(accuracy - measured) <= SAME_ACCURACY:
            raise ExportError(
                f"the network gets {accuracy:.4f} of the test set right, and at the end of the run "
                f"it was {measured:.4f}: the data set is another one now; bring the first one back"
            )
    content = _write(model, images[:2], {**origin, "inference": how})
    _compare(content, model, images[:COMPARED])
    return content


def for_inference(trainer: Trainer) -> tuple[Network, str]:
    """The network with fixed statistics, and what became of its normalization in words."""
    model = trainer.model
    if not normalizations(model):
        return model, "as trained"
    batches = training_batches(trainer)
    images = training_images(trainer, batches)
    model = with_population(model, population_statistics(model, images))
    how = f"population statistics of {len(batches)} minibatches (Algorithm 2)"
    try:
        return fold(model), f"{how}, folded into the weights"
    except FoldError as error:
        return _without_eigenvalues(model), f"{how}, not folded: {error}"


@torch.no_grad()
def _without_eigenvalues(model: Network) -> Network:
    """A copy with each whitening as the linear map that it is for inference: ONNX has no operator
    for its matrix root."""
    model = copy.deepcopy(model)
    for name, module in normalizations(model).items():
        if isinstance(module, Whitening):
            layer = model.named_layers()[name]
            matrix, offset = affine(module)
            units = len(offset)
            linear: nn.Linear | nn.Conv2d = nn.Linear(units, units)
            if isinstance(layer.linear, nn.Conv2d):
                linear, matrix = nn.Conv2d(units, units, 1), matrix[:, :, None, None]
            linear.weight.copy_(matrix)
            assert linear.bias is not None
            linear.bias.copy_(offset)
            layer.normalization = linear
    return model


def _write(model: Network, example: torch.Tensor, metadata: Mapping[str, Any]) -> bytes:
    model = copy.deepcopy(model).eval()
    with warnings.catch_warnings(action="ignore"):  # of the exporter, about its own parts
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["bnviz"] = json.dumps(metadata)
    return program.model_proto.SerializeToString()


def _compare(content: bytes, model: Network, images: torch.Tensor) -> None:
    """Raises ExportError where the file computes something else than the network."""
    read = onnx.load_from_string(content)
    onnx.checker.check_model(read)
    [found] = ReferenceEvaluator(read).run(None, {"images": images.numpy()})
    expected = predict(model, images).numpy()  # (COMPARED, classes)
    difference, largest = np.abs(found - expected).max(), np.abs(expected).max()
    if not difference <= TOLERANCE * max(1.0, float(largest)):
        raise ExportError(
            f"the ONNX file computes other logits than the network (by up to {difference:.2g}), so "
            "it was not kept; please report this"
        )
