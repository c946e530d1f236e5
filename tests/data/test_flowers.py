from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bdray.data import build_dataset
from bdray.data.flowers import CLASSES
from bdray.errors import DataError

Make = Callable[..., Path]


@pytest.mark.parametrize("below", ["flowers", "."])
def test_both_layouts_are_split_alike(tmp_path: Path, make_folders: Make, below: str) -> None:
    make_folders(tmp_path / "root" / below, dict.fromkeys(CLASSES, 10))
    data = build_dataset("flowers", root=str(tmp_path / "root"), image_size=8).load(tmp_path / "cache")
    assert data.class_names == CLASSES
    assert data.train_labels.bincount().tolist() == [8] * 5
    assert data.test_labels.bincount().tolist() == [2] * 5


def test_size_is_128_unless_asked() -> None:
    assert build_dataset("flowers").image_size == 128
    assert build_dataset("flowers", image_size=64).image_size == 64


def test_plural_folders_are_understood(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path / "root", dict.fromkeys(("daisy", "dandelion", "roses", "sunflowers", "tulips"), 2))
    data = build_dataset("flowers", root=str(tmp_path / "root"), image_size=8).load(tmp_path / "cache")
    assert data.class_names == CLASSES


def test_what_is_missing_is_explained(tmp_path: Path, make_folders: Make) -> None:
    with pytest.raises(DataError, match=r"no canonical download.*flowers/<class>/\*.jpg or <class>/\*.jpg.*tulip"):
        build_dataset("flowers").load(tmp_path)
    make_folders(tmp_path / "root", dict.fromkeys(CLASSES[:4], 2))
    with pytest.raises(DataError, match="class 'tulip' has no folder; found: daisy, dandelion, rose, sunflower"):
        build_dataset("flowers", root=str(tmp_path / "root")).load(tmp_path)
    make_folders(tmp_path / "root", {"tulp": 2})
    with pytest.raises(DataError, match="'tulp' is no class of flowers; did you mean 'tulip'"):
        build_dataset("flowers", root=str(tmp_path / "root")).load(tmp_path)
