"""A data set of random pixels in CIFAR-10's shape, so that no benchmark needs a download."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from bdray.data.base import DATASETS, DataSet
from bdray.data.sources import Contents, Pictures, Source

CLASSES = 10


@DATASETS.register("synthetic")
class Synthetic(DataSet):
    """Random uint8 images `3 x 32 x 32` in 10 classes. They cost what CIFAR-10 costs and teach nothing."""

    NUM_CLASSES: ClassVar[int | None] = CLASSES

    train_images: int = Field(default=50_000, ge=100)
    test_images: int = Field(default=10_000, ge=100)

    def source(self, downloads: Path) -> Source:
        return Source("random numbers", {"train": self.train_images, "test": self.test_images}, self._read)

    def _read(self) -> Contents:
        names = tuple(map(str, range(CLASSES)))
        return Contents(names, random_pictures(self.train_images, 0), random_pictures(self.test_images, 1))


def random_pictures(count: int, seed: int) -> Pictures:
    """`count` random images with labels that go round the classes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return Pictures(pixels, np.arange(count, dtype=np.int64) % CLASSES)
