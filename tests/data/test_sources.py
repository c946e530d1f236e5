"""What a data set hands to the cache."""

from pathlib import Path

import numpy as np
import pytest

from bdray.data.sources import Pictures, listed_pictures
from bdray.errors import DataError


def test_pictures_are_taken_in_the_order_asked_for() -> None:
    labels = np.array([5, 6, 7])
    files = Pictures([Path("a"), Path("b"), Path("c")], labels).take(np.array([2, 0]))
    assert files.images == [Path("c"), Path("a")]
    assert files.labels.tolist() == [7, 5]
    pixels = Pictures(np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1), labels).take(np.array([1, 1]))
    assert isinstance(pixels.images, np.ndarray)
    assert pixels.images.ravel().tolist() == [1, 1]


@pytest.mark.parametrize("label", [3, 7])
def test_a_picture_that_a_table_names_twice_is_refused(label: int) -> None:
    rows = [("b.png", 1), ("a.png", 3), ("a.png", label)]
    with pytest.raises(DataError, match=r"labels\.csv names 'a\.png' more than once"):
        listed_pictures(Path("pictures"), rows, 8, "labels.csv")
