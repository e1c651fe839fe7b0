"""Class probabilities of test images: of the image as it is, and of many crops (Section 4.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from bnviz.evaluation import Stopped, predict
from bnviz.predictions import Predictions
from bnviz.trainer import Trainer

SCALES = (256 / 224, 288 / 224, 320 / 224, 352 / 224)
"""Shorter sides to which an image is resized, in parts of the crops' side (GoogLeNet)."""

SCALES_OF_SMALL = (29 / 28, 30 / 28, 31 / 28, 32 / 28)
"""The same for images of less than SMALL pixels, which their objects fill: GoogLeNet's least scale
is the largest here. Our choice."""

SMALL = 100

CHUNK = 250
"""Images a forward pass."""


def crops(images: torch.Tensor, flip: bool) -> Iterator[torch.Tensor]:
    """GoogLeNet's crops of square images: at each of four scales the four corners, the centre, and
    the whole image resized; each mirrored, too, where objects may be.

    GoogLeNet takes three squares of an image that is wider or higher, with which there are 144; of
    a square image these are the same one, so there are 48, and 24 without mirrors.

    Args:
        images: (n, channels, side, side).
        flip: a mirrored object is still one of its class.

    Yields:
        crops of the same shape.
    """
    side = images.shape[2]
    for scale in SCALES if side >= SMALL else SCALES_OF_SMALL:
        large = round(side * scale)
        resized = _resized(images, large)
        far, middle = large - side, (large - side) // 2
        corners = [(0, 0), (0, far), (far, 0), (far, far)]
        for top, left in (*corners, (middle, middle)):
            yield from _with_mirror(resized[:, :, top : top + side, left : left + side], flip)
        yield from _with_mirror(_resized(resized, side), flip)


def probabilities(
    trainer: Trainer, flip: bool, stop: Callable[[], bool] = lambda: False
) -> Predictions:
    """What the network of a training makes of all test examples now, BN with running statistics.

    Args:
        flip: see `crops`.
        stop: asked between passes.

    Raises:
        Stopped: `stop` said so.
    """
    data, count = trainer.data, 0

    def softmax(images: torch.Tensor) -> torch.Tensor:
        if stop():
            raise Stopped
        return predict(trainer.model, images).softmax(1)

    single, many = [], []
    for images in data.test_images.split(CHUNK):
        single.append(softmax(images))
        of_crops = [softmax(crop) for crop in crops(images, flip)]
        many.append(torch.stack(of_crops).mean(0))
        count = len(of_crops)
    return Predictions(
        step=trainer.step,
        crops=count,
        labels=data.test_labels.cpu().numpy().astype(np.int32),
        single=torch.cat(single).cpu().numpy(),
        many=torch.cat(many).cpu().numpy(),
    )


def _resized(images: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def _with_mirror(crop: torch.Tensor, flip: bool) -> Iterator[torch.Tensor]:
    yield crop
    if flip:
        yield crop.flip(3)
