from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bdray.data import build_dataset
from bdray.data.folders import list_class_folders, named_classes
from bdray.errors import DataError

Make = Callable[..., Path]


def test_train_and_test_folders(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path / "train", {"b": 3, "a": 4})
    make_folders(tmp_path / "test", {"b": 2, "a": 1})
    contents = list_class_folders(tmp_path, "image_folder").source().read()
    assert contents.class_names == ("a", "b")
    assert contents.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert contents.test.labels.tolist() == [0, 1, 1]
    assert contents.train.images[4] == tmp_path / "train" / "b" / "00.png"


def test_one_tree_is_split_the_same_way_every_time(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {"a": 10, "b": 20, "c": 2})
    first, second = (list_class_folders(tmp_path, "image_folder").source().read() for _ in range(2))
    assert first.test.images == second.test.images
    assert not set(first.test.images) & set(first.train.images)
    assert len(set(first.test.images) | set(first.train.images)) == 32
    assert first.test.labels.tolist() == [0] * 2 + [1] * 4 + [2]
    for pictures in (first.train, first.test):
        assert [path.parent.name for path in pictures.images] == [first.class_names[k] for k in pictures.labels]


def test_what_is_no_picture_is_left_out(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "flickr.py").write_text("print()")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "README.md").write_text("")
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "UPPER.JPG")
    listing = list_class_folders(tmp_path, "image_folder")
    assert listing.class_names == ("a", "b")
    assert [file.name for file in listing.splits["."]["a"]] == ["00.png", "01.png", "UPPER.JPG"]


def rewrite_in_place(root: Path) -> None:
    path = root / "a" / "00.png"
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a" / "00.png").unlink(),
        lambda root: Image.new("L", (8, 8)).save(root / "a" / "new.png"),
        lambda root: (root / "a" / "00.png").rename(root / "a" / "other.png"),
        lambda root: (root / "a" / "00.png").rename(root / "b" / "moved.png"),
        lambda root: Image.new("L", (9, 9), 7).save(root / "a" / "00.png"),
        rewrite_in_place,
    ],
    ids=["removed", "added", "renamed", "moved", "rewritten", "same size and time"],
)
def test_state_notices_every_change(tmp_path: Path, make_folders: Make, change: Callable[[Path], object]) -> None:
    make_folders(tmp_path, {"a": 3, "b": 3})
    before = list_class_folders(tmp_path, "image_folder").state
    assert before == list_class_folders(tmp_path, "image_folder").state
    change(tmp_path)
    assert before != list_class_folders(tmp_path, "image_folder").state


def test_names_that_are_not_utf8(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {"a": 2, "b": 2})
    odd = os.fsencode(tmp_path) + b"/a/\xff\xfe.png"
    Image.new("L", (8, 8)).save(tmp_path / "a" / "plain.png")
    os.rename(tmp_path / "a" / "plain.png", odd)  # noqa: PTH104
    assert len(list_class_folders(tmp_path, "image_folder").state) == 64
    data = build_dataset("image_folder", root=str(tmp_path), image_size=8).load(tmp_path / "cache")
    assert len(data.train_labels) + len(data.test_labels) == 5


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "expected at least two class folders.*found: nothing"),
        ({"notes.txt": None}, "expected at least two class folders.*found: notes.txt"),
        ({"a/1.png": 1}, "expected at least two class folders.*found: a/"),
        ({"train/a/1.png": 1, "train/b/1.png": 1}, "'train' or 'test' but not both; found: train/"),
        ({"train/a/1.png": 1, "train/b/1.png": 1, "test/a/1.png": 1, "test/c/1.png": 1}, "class 'b' is only in one of"),
        ({"a/1.png": 1, "a/2.png": 1, "b/1.png": 1}, "class 'b' has 1 image; at least 2"),
        ({"a/1.png": 1, "a/2.png": 1, "b/deeper/1.png": 1}, "no image file in .*b; found: deeper/"),
    ],
)
def test_wrong_layouts_are_explained(tmp_path: Path, layout: dict[str, int | None], message: str) -> None:
    for name, content in layout.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"" if content is None else b"x")
    with pytest.raises(DataError, match=message) as caught:
        list_class_folders(tmp_path, "image_folder")
    assert str(tmp_path) in str(caught.value)


def test_named_classes_take_aliases_and_keep_the_order(tmp_path: Path, make_folders: Make) -> None:
    listing = list_class_folders(make_folders(tmp_path, {"tulips": 2, "rose": 2}), "flowers")
    names = named_classes(listing, ("rose", "tulip"), {"tulips": "tulip"}, "flowers")
    assert list(names.items()) == [("rose", "rose"), ("tulips", "tulip")]
    with pytest.raises(DataError, match="'tulips' is no class of flowers; did you mean 'tulip'"):
        named_classes(listing, ("rose", "tulip"), {}, "flowers")
    with pytest.raises(DataError, match="class 'daisy' has no folder; found: rose, tulips"):
        named_classes(listing, ("daisy", "rose", "tulip"), {"tulips": "tulip"}, "flowers")
