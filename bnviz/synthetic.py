"""Patterns made up of random numbers: a data set that needs no file and is learned in seconds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bnviz.settings import DATASETS

SEED = 0
CLASSES = 10
MAX_SHIFT = 4
"""Pixels by which a pattern is moved, up or down and left or right."""
NOISE = 110
"""Greatest grey level added to, or taken from, a pixel; each up to it is as likely."""

Images = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Grey levels (n, 1, side, side), and classes (n,)."""


def generate() -> tuple[Images, Images]:
    """Training and test images: ten blurred random patterns, shifted, with noise.

    The same on every machine: all numbers are whole.
    """
    facts = DATASETS["synthetic"]
    random = np.random.default_rng(SEED)
    patterns = random.integers(0, 256, (CLASSES, facts.side, facts.side))
    for axis in (1, 2):
        for _ in range(3):  # sums of neighbours, thrice: nearly Gaussian
            patterns = np.sum([np.roll(patterns, shift, axis) for shift in range(-2, 3)], axis=0)
    low, high = (patterns.min((1, 2), keepdims=True), patterns.max((1, 2), keepdims=True))
    patterns = (patterns - low) * 255 // (high - low)

    def draw(count: int) -> Images:
        labels = random.integers(0, CLASSES, count)
        shifts = random.integers(-MAX_SHIFT, MAX_SHIFT + 1, (2, count, 1, 1))
        pixels = np.arange(facts.side)
        rows = (pixels[:, None] + shifts[0]) % facts.side  # (count, side, 1)
        columns = (pixels + shifts[1]) % facts.side  # (count, 1, side)
        images = patterns[labels[:, None, None], rows, columns]
        images += random.integers(-NOISE, NOISE + 1, images.shape)
        return images.clip(0, 255).astype(np.uint8)[:, None], labels

    return draw(facts.train), draw(facts.test)
