"""A data set of random pixels in CIFAR-10's shape, a plugin: no benchmark needs a download."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bdray.data.base import DATASETS, DataSet
from bdray.data.sources import Contents, Source
from benchmarks.pictures import CLASSES, random_pictures


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
