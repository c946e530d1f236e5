"""Training images that are test images too: what a model has seen, it is not tested on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from bdray.data.sources import Contents, Pictures, Pixels

NAMED = 20
"""So many are named in a record; `bdray preview` names all."""


class Duplicate(BaseModel):
    """A training image that equals a test image, value for value, at the size they are used at.

    Attributes:
        train, test: positions among the training and among the test images; `test` is the first of several.
        train_name, test_name: their files below the data set's folder, or "training image 17" where there are none.
        same_label: whether both have the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: int
    test: int
    train_name: str
    test_name: str
    same_label: bool

    def __str__(self) -> str:
        return f"{self.train_name} = {self.test_name}{'' if self.same_label else ' (another label)'}"


class DuplicatesRecord(BaseModel):
    """How many training images are test images too, and which.

    Attributes:
        count: of all training images, the clean pool included.
        other_label: of those, how many have another label there.
        named: the first of them, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    other_label: int
    named: tuple[str, ...]

    @classmethod
    def of(cls, found: Sequence[Duplicate]) -> DuplicatesRecord:
        other = sum(not each.same_label for each in found)
        return cls(count=len(found), other_label=other, named=tuple(map(str, found[:NAMED])))


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
    return files[position].relative_to(root).as_posix() if files else ""
