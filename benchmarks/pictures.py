"""Random pictures in CIFAR-10's shape."""

from __future__ import annotations

import numpy as np

from bdray.data.sources import Pictures

CLASSES = 10

SYNTHETIC = "benchmarks.synthetic"
"""The module that registers the data set `synthetic`, imported like a user's plugin: when a condition names it."""


def random_pictures(count: int, seed: int) -> Pictures:
    """`count` random images with labels that go round the classes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return Pictures(pixels, np.arange(count, dtype=np.int64) % CLASSES)
