"""Class probabilities of test images: of the image as it is, and of many crops (Section 4.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from bnviz.crops import crops
from bnviz.data import ImageData
from bnviz.evaluation import Stopped, predict
from bnviz.predictions import Predictions
from bnviz.trainer import Trainer


def probabilities(trainer: Trainer, stop: Callable[[], bool] = lambda: False) -> Predictions:
    """What the network of a training makes of all test examples now, BN with running statistics.

    Args:
        stop: asked between passes.

    Raises:
        Stopped: `stop` said so.
    """

    def softmax(images: torch.Tensor) -> torch.Tensor:
        if stop():
            raise Stopped
        return predict(trainer.model, images).softmax(1)

    single, labels = [], []
    for images, own in trainer.source.test_chunks():
        single.append(softmax(images))
        labels.append(own)
    many, count = [], 0
    for of_image in _crops(trainer):
        of_crops = [softmax(crop) for crop in of_image]
        many.append(torch.stack(of_crops).mean(0))
        count = len(of_crops)
    return Predictions(
        step=trainer.step,
        crops=count,
        labels=torch.cat(labels).cpu().numpy().astype(np.int32),
        single=torch.cat(single).cpu().numpy(),
        many=torch.cat(many).cpu().numpy(),
    )


def _crops(trainer: Trainer) -> Iterator[Iterator[torch.Tensor]]:
    """The crops of some test images, then those of the next ones."""
    source = trainer.source
    if isinstance(source, ImageData):
        for images, _ in source.test_chunks():
            yield crops(images, trainer.config.data.flip)
    else:
        for of_images, _ in source.test_crops():  # (1, crops, channels, side, side)
            yield iter(of_images.unbind(1))
