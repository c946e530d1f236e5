"""CIFAR-10 (Krizhevsky 2009), from the canonical archive or from class folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdray.data.base import DATASETS, DataSet
from bdray.data.downloads import download, unpack
from bdray.data.folders import Layout, existing_root, found, is_empty, list_class_folders, named_classes
from bdray.data.sources import Contents, Pictures, Source
from bdray.errors import DataError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

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
        root = downloads if self.root is None else existing_root(self.root, "cifar10")
        if (root / "train").is_dir():
            listing = list_class_folders(root, "cifar10", Layout(unread=self.unread))
            return listing.source(named_classes(listing, CLASSES, ALIASES, "cifar10"))
        if self.root is not None and not (root / ARCHIVE).is_dir() and not is_empty(root):
            raise DataError(
                f"data.root of cifar10: expected {ARCHIVE}/, or train/<class>/* and test/<class>/*, in {root}; "
                f"{found(root)} (without a root it is downloaded into the cache)"
            )
        # The checksums fix the content, so the arrays outlive the files they came from.
        return Source(f"{root / ARCHIVE}", {"md5": MD5}, lambda: _read(root), self.TRAIN_SIZES)


def _read(root: Path) -> Contents:
    from torchvision.datasets import CIFAR10

    advice = f"set data.root to a folder that holds {ARCHIVE}/, or train/<class>/* and test/<class>/*"
    download(root, ARCHIVE, _fetch, advice)
    try:
        train, test = (CIFAR10(root, train=train) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root / ARCHIVE} is incomplete or has wrong checksums ({error}); remove it") from error
    return Contents(CLASSES, _pictures(train), _pictures(test))


def _fetch(folder: str) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    download_url(CIFAR10.url, folder, CIFAR10.filename, CIFAR10.tgz_md5)
    unpack(Path(folder, CIFAR10.filename), Path(folder))


def _pictures(split: CIFAR10) -> Pictures:
    return Pictures(split.data.transpose(0, 3, 1, 2), np.asarray(split.targets, dtype=np.int64))
