from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from waiting import until

from bdray.condition import Condition
from bdray.data import build_dataset
from bdray.data.base import DataSet
from bdray.errors import DataError

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
    until(lambda: folder(root).identity() != before)  # on a busy machine even a small listing may be reused for a while


def test_identity_of_many_conditions_is_cheap(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path, {f"class{number}": 50 for number in range(60)}, side=2)
    start = time.process_time()
    folder(root).identity()
    once = time.process_time() - start
    start = time.process_time()
    for _ in range(500):
        folder(root).identity()
    assert time.process_time() - start < 250 * once


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
