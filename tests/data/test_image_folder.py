from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from bdray.condition import Condition
from bdray.data import build_dataset
from bdray.data import content as digests
from bdray.data.base import DataSet
from bdray.data.folders import ClassFolders, Layout, list_class_folders
from bdray.errors import ComponentError, DataError

Make = Callable[..., Path]
REST = {"model": "resnet8", "trigger": "patch", "poison": {"rate": 0.1}}


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
    assert folder(root).identity() != before


def test_identity_of_many_conditions_lists_a_large_folder_once(
    tmp_path: Path, make_folders: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which listing it takes a second; no file has changed for long."""
    root, now, listed, read = make_folders(tmp_path, {"a": 3, "b": 3}), [0.0], list[Path](), list[Path]()
    digest = digests._digest

    def listing(place: Path, data_set: str, layout: Layout) -> ClassFolders:
        now[0] += 1.0
        listed.append(place)
        return list_class_folders(place, data_set, layout)

    monkeypatch.setattr(
        digests, "time", SimpleNamespace(monotonic=lambda: now[0], time_ns=lambda: time.time_ns() + 10**10)
    )
    monkeypatch.setattr(digests, "QUICK_SECONDS", 0.5)
    monkeypatch.setattr(digests, "_listed", {})
    monkeypatch.setattr(digests, "list_class_folders", listing)
    monkeypatch.setattr(digests, "_digest", lambda path: (read.append(path), digest(path))[1])
    identities = {str(folder(root).identity()) for _ in range(500)}
    assert (len(identities), len(listed), len(read)) == (1, 1, 6)
    now[0] += 25
    folder(root).identity()
    assert (len(listed), len(read)) == (2, 6), "listed anew, but no byte is read again"


def test_class_names_are_known_where_the_folder_is_not(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path / "here", {"cat": 3, "10": 3, "2": 3})
    data = folder(root)
    assert data.class_names() == ("10", "2", "cat")
    content = json.loads(json.dumps(data.model_dump(mode="json")))
    moved = build_dataset(**{**content, "root": str(tmp_path / "nowhere")})
    assert (moved.class_names(), moved.identity()) == (("10", "2", "cat"), data.identity())
    before = build_dataset(**{**content, "classes": None, "root": None})
    assert before.identity() == data.identity()
    with pytest.raises(DataError, match=r"data.classes of image_folder: those of .*here are 10, 2, cat; leave"):
        build_dataset(**{**content, "classes": ["2", "10", "cat"]}).load(tmp_path / "cache")


def turned_over(path: Path) -> None:
    """The same file with one byte changed: same name, size and time of modification."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_identity_is_of_every_byte(tmp_path: Path, make_folders: Make) -> None:
    one, two = (make_folders(tmp_path / name, {"a": 3, "b": 3}) for name in ("one", "two"))
    turned_over(two / "b" / "01.png")
    assert folder(one).identity() != folder(two).identity()


def test_a_condition_carries_its_content_to_the_worker(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path / "pictures", {"a": 6, "b": 6})
    planned = Condition.parse({"data": {"name": "image_folder", "root": str(root)}, **REST})
    sent = json.dumps(planned.content())
    turned_over(root / "a" / "02.png")
    worker = """
import sys
from pathlib import Path
from bdray.condition import Condition
from bdray.errors import BdrayError
condition = Condition.parse(__import__("json").loads(sys.argv[1]))
print(condition.condition_id)
try:
    condition.data.load(Path(sys.argv[2]))
except BdrayError as error:
    print(error)
"""
    arguments = [sys.executable, "-c", worker, sent, str(tmp_path / "cache")]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    said_id, problem = result.stdout.splitlines()
    assert said_id == planned.condition_id
    assert "not those the condition was made from" in problem
    assert "the file changed last is a/02.png" in problem
    anew = Condition.parse({"data": {"name": "image_folder", "root": str(root)}, **REST})
    assert anew.condition_id != planned.condition_id
    turned_over(root / "a" / "02.png")
    assert len(planned.data.load(tmp_path / "cache").train_labels) == 10


def test_reading_a_condition_back_needs_no_folder(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path / "pictures", {"a": 3, "b": 3})
    planned = Condition.parse({"data": {"name": "image_folder", "root": str(root)}, **REST})
    shutil.rmtree(root)
    read = Condition.parse(json.loads(json.dumps(planned.content())))
    assert read.condition_id == planned.condition_id
    assert read.content() == planned.content()


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


def test_a_wrong_root_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root of image_folder is missing"):
        build_dataset("image_folder").load(Path("unused"))
    with pytest.raises(DataError, match=r"data.root of image_folder: .*nowhere does not exist"):
        folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file is a file, not a folder"):
        folder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected at least two class folders"):
        folder(tmp_path / "empty")


def test_home_is_expanded(tmp_path: Path, make_folders: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folders(tmp_path / "pictures", {"a": 3, "b": 3})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder(Path("~/pictures")).load(tmp_path / "cache").num_classes == 2


def test_the_two_folders_may_have_other_names_which_are_no_part_of_the_identity(
    tmp_path: Path, make_folders: Make
) -> None:
    for name, folders in (("usual", ("train", "test")), ("other", ("Training", "val"))):
        for count, place in zip((4, 2), folders, strict=True):
            make_folders(tmp_path / name / place, {"a": count, "b": count})
    usual = folder(tmp_path / "usual")
    other = folder(tmp_path / "other", train_folder="Training", test_folder="val")
    assert other.identity() == usual.identity()
    assert other.load(tmp_path / "cache").fingerprint == usual.load(tmp_path / "cache").fingerprint
    assert other.train_sizes() == (4, 4)
    with pytest.raises(DataError, match=r"no image file.*set data.train_folder: Training and data.test_folder: val"):
        folder(tmp_path / "other")
    with pytest.raises(ComponentError, match="train_folder"):
        folder(tmp_path / "other", train_folder="a/b")


def test_the_share_of_the_test_set_is_an_option(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path / "tree", {"a": 10, "b": 20})
    fifth, half = folder(root, image_size=8), folder(root, image_size=8, test_fraction=0.5)
    assert "test_fraction" not in fifth.identity()
    assert half.identity() == {**fifth.identity(), "test_fraction": 0.5}
    assert fifth.load(tmp_path / "cache").test_labels.bincount().tolist() == [2, 4]
    assert half.load(tmp_path / "cache").test_labels.bincount().tolist() == [5, 10]
    assert half.train_sizes() == (5, 10)
    for split in ("train", "test"):
        make_folders(tmp_path / "split" / split, {"a": 2, "b": 2})
    with pytest.raises(DataError, match=r"data.test_fraction of image_folder: .* has a test set of its own"):
        folder(tmp_path / "split", test_fraction=0.5).load(tmp_path / "cache")


def test_what_is_left_out_is_no_part_of_the_identity(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path, {"a": 3, "b": 3})
    before = folder(root).identity()
    (root / "a" / "x.avif").write_bytes(b"")
    with pytest.raises(DataError, match=r"x.avif"):
        folder(root)
    assert folder(root, unread="leave_out").identity() == before
