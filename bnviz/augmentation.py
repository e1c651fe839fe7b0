"""Random changes of training images, as GoogLeNet was trained with (Szegedy et al. 2014), and less
of them with BN (Section 4.2.1)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from bnviz.settings import DataConfig

ASPECT = 4 / 3
"""Of a crop's sides, at most, in either direction (GoogLeNet)."""

GREY = (0.299, 0.587, 0.114)
"""Parts of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


def augmented(images: torch.Tensor, config: DataConfig, seed: int, step: int) -> torch.Tensor:
    """Images changed at random. What is drawn is a function of seed and step alone.

    Args:
        images: (m, channels, height, width), pixels in [0, 1]; they stay as they are.

    Returns:
        images of the same shape, pixels in [0, 1].
    """
    random = np.random.default_rng([seed, step, 1])  # 1: not the numbers that order the examples
    if config.crop_area < 1 or config.flip:
        images = _cropped(images, config.crop_area, config.flip, random)
    if config.distortion:
        images = _distorted(images, config.distortion, random)
    return images


def _cropped(
    images: torch.Tensor, least_area: float, flip: bool, random: np.random.Generator
) -> torch.Tensor:
    """Crops, resized to the size of the images by linear interpolation."""
    count = len(images)
    area = random.uniform(least_area, 1, count)
    aspect = np.exp(random.uniform(-math.log(ASPECT), math.log(ASPECT), count))
    if least_area == 1:
        aspect[:] = 1
    sizes = np.sqrt(np.stack([area * aspect, area / aspect])).clip(max=1)  # (2, m) of the image
    centres = random.uniform(-1, 1, (2, count)) * (1 - sizes)  # the image goes from -1 to 1
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1] = sizes
    theta[:, :, 2] = centres.T
    if flip:
        theta[random.random(count) < 0.5, 0, 0] *= -1
    grid = F.affine_grid(
        torch.from_numpy(theta).to(images.device), list(images.shape), align_corners=False
    )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _distorted(images: torch.Tensor, strength: float, random: np.random.Generator) -> torch.Tensor:
    """Brightness, contrast and, of colours, saturation times random factors around 1."""
    factors = random.uniform(1 - strength, 1 + strength, (3, len(images), 1, 1, 1))
    brightness, contrast, saturation = torch.from_numpy(factors.astype(np.float32)).to(
        images.device
    )
    images = (images * brightness).clamp(max=1)
    images = torch.lerp(_grey(images).mean((2, 3), keepdim=True), images, contrast).clamp(0, 1)
    if images.shape[1] == 3:
        images = torch.lerp(_grey(images), images, saturation).clamp(0, 1)
    return images


def _grey(images: torch.Tensor) -> torch.Tensor:
    """(m, 1, height, width)."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    parts = torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)
    return (images * parts).sum(1, keepdim=True)
