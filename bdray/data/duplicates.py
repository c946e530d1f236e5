"""Training images that are test images too: what a model has seen, it is not tested on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bdray.data.arrays import Duplicate
from bdray.data.folders import as_text
from bdray.data.sources import Contents, Pictures, Pixels


def image_digests(batch: Pixels) -> list[bytes]:
    """A digest of each image's values. uint8, `N x 3 x S x S`."""
    return [hashlib.blake2b(image.data, digest_size=16).digest() for image in np.ascontiguousarray(batch)]


def find_duplicates(contents: Contents, train: Sequence[bytes], test: Sequence[bytes]) -> tuple[Duplicate, ...]:
    """Every training image that is a test image too, in order. `train`, `test`: the `image_digests` of both."""
    first = {digest: position for position, digest in reversed(list(enumerate(test)))}
    pairs = [(position, first[digest]) for position, digest in enumerate(train) if digest in first]
    files = [path for part in (contents.train, contents.test) for path in _files(part)]
    root = os.path.commonpath([path.parent for path in files]) if files else ""
    return tuple(
        Duplicate(
            train=mine,
            test=its,
            train_name=_name(contents.train, mine, root) or f"training image {mine}",
            test_name=_name(contents.test, its, root) or f"test image {its}",
            same_label=bool(contents.train.labels[mine] == contents.test.labels[its]),
        )
        for mine, its in pairs
    )


def _files(pictures: Pictures) -> Sequence[Path]:
    return [] if isinstance(pictures.images, np.ndarray) else pictures.images


def _name(pictures: Pictures, position: int, root: str) -> str:
    files = _files(pictures)
    return as_text([files[position].relative_to(root).as_posix()])[0] if files else ""
