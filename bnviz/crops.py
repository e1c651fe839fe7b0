"""Many crops of a test image, as GoogLeNet takes them (Szegedy et al. 2014; Section 4.2.3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

SCALES = (256 / 224, 288 / 224, 320 / 224, 352 / 224)
"""Shorter sides to which an image is resized, in parts of the crops' side (GoogLeNet)."""

SCALES_OF_SMALL = (29 / 28, 30 / 28, 31 / 28, 32 / 28)
"""The same for images of less than SMALL pixels, which their objects fill: GoogLeNet's least scale
is the largest here. Our choice."""

SMALL = 100


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
        yield from crops_of_square(_resized(images, round(side * scale)), side, flip)


def crops_of_square(squares: torch.Tensor, side: int, flip: bool) -> Iterator[torch.Tensor]:
    """The four corners, the centre and the whole of (n, channels, height, height) images, each
    (n, channels, side, side); with `flip` followed by its mirror."""
    far, middle = squares.shape[2] - side, (squares.shape[2] - side) // 2
    corners = [(0, 0), (0, far), (far, 0), (far, far)]
    for top, left in (*corners, (middle, middle)):
        yield from _with_mirror(squares[:, :, top : top + side, left : left + side], flip)
    yield from _with_mirror(_resized(squares, side), flip)


def _resized(images: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def _with_mirror(crop: torch.Tensor, flip: bool) -> Iterator[torch.Tensor]:
    yield crop
    if flip:
        yield crop.flip(3)
