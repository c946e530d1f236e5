from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bdray.data import build_dataset
from bdray.data.base import DataSet
from bdray.errors import DataError

Make = Callable[..., Path]


def folder(root: Path, **options: object) -> DataSet:
    return build_dataset("image_folder", root=str(root), **options)


def test_identity_is_of_the_content_not_the_place(tmp_path: Path, make_folders: Make) -> None:
    one, two = (make_folders(tmp_path / name, {"a": 3, "b": 3}) for name in ("one", "two"))
    other = make_folders(tmp_path / "other", {"a": 3, "c": 3})
    assert folder(one).identity() == folder(two).identity()
    assert folder(one).identity() != folder(other).identity()
    assert "root" not in folder(one).identity()
    assert folder(one, image_size=64).identity() != folder(one).identity()


def test_identity_notices_a_change(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path, {"a": 3, "b": 3})
    before = folder(root).identity()
    Image.new("RGB", (8, 8)).save(root / "a" / "new.png")
    deadline = time.monotonic() + 10
    while folder(root).identity() == before:  # on a busy machine even a small listing may be reused for a while
        assert time.monotonic() < deadline


def test_identity_of_many_conditions_is_cheap(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path, {f"class{number}": 50 for number in range(60)}, side=2)
    start = time.perf_counter()
    folder(root).identity()
    once = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(500):
        folder(root).identity()
    assert time.perf_counter() - start < 250 * once


def test_loads_what_the_folders_hold(tmp_path: Path, make_folders: Make) -> None:
    for split, count in (("train", 4), ("test", 2)):
        make_folders(tmp_path / split, {"b": count, "a": count})
    (tmp_path / "train" / "a" / "00.png").unlink()
    Image.new("RGB", (50, 20), (9, 8, 7)).save(tmp_path / "train" / "a" / "00.png")
    data = folder(tmp_path, image_size=10).load(tmp_path / "cache")
    assert data.class_names == ("a", "b")
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4
    assert data.test_labels.tolist() == [0] * 2 + [1] * 2
    assert data.train_images[0, :, 5, 5].tolist() == [9, 8, 7]


@pytest.mark.parametrize("ask", [lambda data: data.identity(), lambda data: data.load(Path("unused"))])
def test_a_wrong_root_is_explained(tmp_path: Path, ask: Callable[[DataSet], object]) -> None:
    with pytest.raises(DataError, match=r"data.root of image_folder is missing"):
        ask(build_dataset("image_folder"))
    with pytest.raises(DataError, match=r"data.root of image_folder: .*nowhere does not exist"):
        ask(folder(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file is a file, not a folder"):
        ask(folder(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected at least two class folders"):
        ask(folder(tmp_path / "empty"))


def test_home_is_expanded(tmp_path: Path, make_folders: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folders(tmp_path / "pictures", {"a": 3, "b": 3})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder(Path("~/pictures")).load(tmp_path / "cache").num_classes == 2
