"""CIFAR-100 (Krizhevsky 2009), from the canonical archive or from class folders."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bdray.data.base import DATASETS, DataSet
from bdray.data.pickles import source_of_pickles
from bdray.data.sources import Source

ARCHIVE = "cifar-100-python"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
"""Of the canonical archive, as published beside it."""

_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CLASSES = tuple(_NAMES.split())
"""The fine labels, as the archive names them."""


@DATASETS.register("cifar100")
class Cifar100(DataSet):
    """50,000 training and 10,000 test pictures, 32 x 32 RGB, in 100 classes (the fine labels).

    `root` holds the canonical `cifar-100-python` or class folders `train/<class>/*`, `test/<class>/*`. Without a root,
    or when it is empty, the canonical archive is downloaded and its checksums are verified.
    """

    SOURCE: ClassVar[str] = "CIFAR-100, Krizhevsky 2009"
    NUM_CLASSES: ClassVar[int | None] = 100
    CLASS_NAMES: ClassVar[tuple[str, ...] | None] = CLASSES
    TRAIN_SIZES: ClassVar[tuple[int, ...] | None] = (500,) * 100
    DOWNLOADED: ClassVar[str | None] = ARCHIVE

    def source(self, downloads: Path) -> Source:
        return source_of_pickles(self, downloads, MD5)
