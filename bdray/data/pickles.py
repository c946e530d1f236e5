"""What CIFAR-10 and CIFAR-100 share: torchvision reads their pickles, after it has compared each with its checksum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bdray.data.base import DataSet
from bdray.data.downloads import download, unpack
from bdray.data.folders import Layout, existing_root, found, is_empty, list_class_folders, named_classes
from bdray.data.sources import Contents, Pictures, Source
from bdray.errors import DataError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def source_of_pickles(data_set: DataSet, downloads: Path, md5: str, aliases: Mapping[str, str] = {}) -> Source:
    """The canonical archive (`DOWNLOADED` is its folder) or class folders below the root.

    Args:
        data_set: knows its `CLASS_NAMES`.
        downloads: as in `DataSet.source`.
        md5: of the archive, which fixes the content.
        aliases: what a class folder may be called -> class name.

    Raises:
        DataError: the root is not laid out as expected.
    """
    name, archive, classes = data_set.name, str(data_set.DOWNLOADED), data_set.CLASS_NAMES or ()
    root = downloads if data_set.root is None else existing_root(data_set.root, name)
    if (root / "train").is_dir():
        listing = list_class_folders(root, name, Layout(unread=data_set.unread))
        return listing.source(named_classes(listing, classes, aliases, name))
    if data_set.root is not None and not (root / archive).is_dir() and not is_empty(root):
        raise DataError(
            f"data.root of {name}: expected {archive}/, or train/<class>/* and test/<class>/*, in {root}; "
            f"{found(root)} (without a root it is downloaded into the cache)"
        )
    # The checksums fix the content, so the arrays outlive the files they came from.
    return Source(f"{root / archive}", {"md5": md5}, partial(_read, root, archive, classes), data_set.TRAIN_SIZES)


def _published(archive: str) -> type[CIFAR10]:
    from torchvision.datasets import CIFAR10, CIFAR100

    published: dict[str, type[CIFAR10]] = {each.base_folder: each for each in (CIFAR10, CIFAR100)}
    return published[archive]


def _read(root: Path, archive: str, classes: Sequence[str]) -> Contents:
    advice = f"set data.root to a folder that holds {archive}/, or train/<class>/* and test/<class>/*"
    download(root, archive, partial(_fetch, archive), advice)
    try:
        train, test = (_published(archive)(root, train=train) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root / archive} is incomplete or has wrong checksums ({error}); remove it") from error
    return Contents(tuple(classes), _pictures(train), _pictures(test))


def _fetch(archive: str, folder: str) -> None:
    from torchvision.datasets.utils import download_url

    published = _published(archive)
    download_url(published.url, folder, published.filename, published.tgz_md5)
    unpack(Path(folder, published.filename), Path(folder))


def _pictures(split: CIFAR10) -> Pictures:
    return Pictures(split.data.transpose(0, 3, 1, 2), np.asarray(split.targets, dtype=np.int64))
