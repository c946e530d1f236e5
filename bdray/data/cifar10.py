"""CIFAR-10 (Krizhevsky 2009), from the canonical archive or from class folders."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bdray.data.base import DATASETS, DataSet
from bdray.data.pickles import source_of_pickles
from bdray.data.sources import Source

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ALIASES = {"plane": "airplane", "car": "automobile"}
ARCHIVE = "cifar-10-batches-py"
MD5 = "c58f30108f718f92721af3b95e74349a"
"""Of the canonical archive, as published beside it."""


@DATASETS.register("cifar10")
class Cifar10(DataSet):
    """50,000 training and 10,000 test pictures, 32 x 32 RGB, in 10 classes.

    `root` holds the canonical `cifar-10-batches-py` or class folders `train/<class>/*`, `test/<class>/*`. Without a
    root, or when it is empty, the canonical archive is downloaded and its checksums are verified.
    """

    SOURCE: ClassVar[str] = "CIFAR-10, Krizhevsky 2009"
    NUM_CLASSES: ClassVar[int | None] = 10
    CLASS_NAMES: ClassVar[tuple[str, ...] | None] = CLASSES
    TRAIN_SIZES: ClassVar[tuple[int, ...] | None] = (5000,) * 10
    DOWNLOADED: ClassVar[str | None] = ARCHIVE

    def source(self, downloads: Path) -> Source:
        return source_of_pickles(self, downloads, MD5, ALIASES)
