"""Handwritten digits: 1,797 real pictures that come with scikit-learn, so there is always something to run on."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from bdray.data.base import DATASETS, Augmentation, DataSet
from bdray.data.sources import Contents, Pictures, Source
from bdray.data.splits import split_test
from bdray.seeds import stream


@DATASETS.register("digits")
class Digits(DataSet):
    """8 x 8 grayscale digits of 17 levels, spread over 0..255, resized by bicubic interpolation and repeated in three
    channels. A stratified 20 % is the test set, the same for every seed (our choice). `root` is not used."""

    SOURCE: ClassVar[str] = "UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak 1998, test part"
    NUM_CLASSES: ClassVar[int | None] = 10
    CLASS_NAMES: ClassVar[tuple[str, ...] | None] = tuple(map(str, range(10)))
    TRAIN_SIZES: ClassVar[tuple[int, ...] | None] = (142, 146, 142, 146, 145, 146, 145, 143, 139, 144)
    AUGMENTATION: ClassVar[Augmentation] = "crop"  # a flipped digit is another digit

    def source(self, downloads: Path) -> Source:
        return Source("scikit-learn's digits", {}, _read, self.TRAIN_SIZES)


def _read() -> Contents:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    gray = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    whole = Pictures(np.repeat(gray[:, None], 3, axis=1), labels)
    train, test = split_test(labels, 0.2, stream(0, "subset", "digits", "test_split"))
    return Contents(Digits.CLASS_NAMES or (), whole.take(train), whole.take(test))
