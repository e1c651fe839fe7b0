"""Class probabilities of test images: of the image as it is, and of many crops (Section 4.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from bnviz.crops import crops
from bnviz.data import ImageData
from bnviz.evaluation import Stopped, predict
from bnviz.predictions import Predictions, PredictionsError
from bnviz.trainer import Trainer

CROPS_AT_ONCE = 48
"""Of one large image, in a forward pass."""


def probabilities(trainer: Trainer, stop: Callable[[], bool] = lambda: False) -> Predictions:
    """What the network of a training makes of all test examples now, BN with running statistics.

    Args:
        stop: asked between passes.

    Raises:
        Stopped: `stop` said so.
        PredictionsError: what comes out are no probabilities, or the images are not square.
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
    for of_crops in _of_crops(trainer, softmax):  # (crops, n, classes)
        many.append(of_crops.mean(0))
        count = len(of_crops)
    return Predictions(
        step=trainer.step,
        crops=count,
        labels=torch.cat(labels).cpu().numpy().astype(np.int32),
        single=torch.cat(single).cpu().numpy(),
        many=torch.cat(many).cpu().numpy(),
    )


def _of_crops(
    trainer: Trainer, softmax: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Class probabilities of the crops of some test images, (crops, n, classes), then of the next
    ones."""
    source = trainer.source
    if isinstance(source, ImageData):
        if source.shape[1] != source.shape[2]:
            raise PredictionsError("crops are of square images")
        for images, _ in source.test_chunks():
            yield torch.stack([softmax(c) for c in crops(images, trainer.config.data.flip)])
    else:
        for of_images, _ in source.test_crops():  # (1, crops, channels, side, side)
            parts = [softmax(part) for part in of_images[0].split(CROPS_AT_ONCE)]
            yield torch.cat(parts)[:, None]
