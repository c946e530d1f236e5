"""What a data set hands to the cache: a key that changes whenever the pictures do, and the way to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bdray.errors import DataError

Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """One split, not yet at its final size.

    Attributes:
        images: files to decode, or pixels as uint8 `N x 3 x H x W`.
        labels: int64, `N`.
    """

    images: Sequence[Path] | Pixels
    labels: Labels

    def take(self, indices: Labels) -> Pictures:
        """The pictures at these positions, in this order."""
        chosen = self.images[indices] if isinstance(self.images, np.ndarray) else [self.images[i] for i in indices]
        return Pictures(chosen, self.labels[indices])


def listed_pictures(folder: Path, rows: Sequence[tuple[str, int]], num_classes: int, table: str) -> Pictures:
    """The pictures in `folder` that a table names with their labels, sorted by name.

    Raises:
        DataError: the table names nothing, a picture twice, a file outside the folder, or a class that there is not.
    """
    for name, label in rows:
        if Path(name).name != name or not 0 <= label < num_classes:
            raise DataError(f"{table}: {name!r} of class {label} is no picture in {folder} of {num_classes} classes")
    if not rows:
        raise DataError(f"{table} names no picture in {folder}")
    rows = sorted(rows)
    if twice := [name for (name, _), (after, _) in pairwise(rows) if name == after]:
        raise DataError(f"{table} names {twice[0]!r} more than once")
    return Pictures([folder / name for name, _ in rows], np.array([label for _, label in rows], dtype=np.int64))


@dataclass(frozen=True)
class Contents:
    """Both splits of a data set; label `k` means `class_names[k]`."""

    class_names: tuple[str, ...]
    train: Pictures
    test: Pictures


@dataclass(frozen=True)
class Source:
    """Where a data set's pictures come from.

    Attributes:
        where: for messages ("the folder /data/flowers").
        key: JSON content that changes whenever the pictures, their labels or their split do.
        read: finds the pictures (and downloads them first if need be); called only when the cache lacks them.
        train_sizes: training images of each class by label, where they are known before anything is read.
        class_names: by label, likewise.
        unread: files that lie among the pictures and are left out.
    """

    where: str
    key: Mapping[str, Any]
    read: Callable[[], Contents]
    train_sizes: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    unread: tuple[str, ...] = ()
