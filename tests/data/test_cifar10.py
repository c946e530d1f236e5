from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from bdray.data import build_dataset
from bdray.data.cifar10 import CLASSES, MD5
from bdray.errors import DataError

Make = Callable[..., Path]
Visible = Callable[[Path], list[str]]


@pytest.fixture
def archive(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A small archive of CIFAR-10's exact form, served over HTTP from this machine; torchvision takes it for the real
    one. Returns its pixels, `N x 3072`, by batch."""
    random = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    pixels = {name: random.integers(0, 256, (10, 3072), dtype=np.uint8) for name in names}
    files = {name: {"data": data, "labels": [*range(9, -1, -1)]} for name, data in pixels.items()}
    files["batches.meta"] = {"label_names": list(CLASSES)}
    sums = {}
    with tarfile.open(tmp_path / "server" / CIFAR10.filename, "w:gz") as tar:
        for name, content in files.items():
            data = pickle.dumps(content)
            sums[name] = hashlib.md5(data).hexdigest()
            entry = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    packed = (tmp_path / "server" / CIFAR10.filename).read_bytes()
    monkeypatch.setattr(CIFAR10, "url", f"{server}/{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(packed).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return pixels


def test_the_checksum_is_the_published_one() -> None:
    assert CIFAR10.tgz_md5 == MD5


@pytest.mark.parametrize("rooted", [False, True])
def test_downloads_once(tmp_path: Path, archive: dict[str, np.ndarray], visible: Visible, rooted: bool) -> None:
    place = tmp_path / ("root" if rooted else "cache/downloads/cifar10")
    if rooted:
        place.mkdir()
    data_set = build_dataset("cifar10", root=str(place) if rooted else None)
    data = data_set.load(tmp_path / "cache")
    batches = [archive[f"data_batch_{number}"] for number in range(1, 6)]
    np.testing.assert_array_equal(data.train_images.numpy(), np.concatenate(batches).reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(data.test_images.numpy(), archive["test_batch"].reshape(-1, 3, 32, 32))
    assert data.train_labels.tolist() == [*range(9, -1, -1)] * 5
    assert data.class_names == CLASSES
    assert [name for name in visible(place) if "batch" not in name] == []
    (tmp_path / "server" / CIFAR10.filename).unlink()
    again = build_dataset("cifar10", root=str(place) if rooted else None, train_limit=20).load(tmp_path / "cache")
    assert again.train_labels.bincount().tolist() == [2] * 10


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, archive: dict[str, np.ndarray], visible: Visible) -> None:
    (tmp_path / "server" / CIFAR10.filename).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"cannot download cifar-10-batches-py \(.*corrupted"):
        build_dataset("cifar10").load(tmp_path / "cache")
    assert visible(tmp_path / "cache") == ["arrays", "cifar10", "downloads"]


@pytest.mark.usefixtures("offline")
def test_out_of_reach_is_explained_and_leaves_nothing(tmp_path: Path, visible: Visible) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for _ in range(2):
        with pytest.raises(DataError, match=r"cannot download cifar-10-batches-py .*train/<class>/\*"):
            build_dataset("cifar10", root=str(root)).load(tmp_path / "cache")
    assert visible(root) == []


def test_a_changed_batch_is_noticed(tmp_path: Path, archive: dict[str, np.ndarray]) -> None:
    shutil.unpack_archive(tmp_path / "server" / CIFAR10.filename, tmp_path / "root")
    path = tmp_path / "root" / CIFAR10.base_folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="cifar-10-batches-py is incomplete or has wrong checksums"):
        build_dataset("cifar10", root=str(tmp_path / "root")).load(tmp_path / "cache")


def test_class_folders_in_canonical_order(tmp_path: Path, make_folders: Make) -> None:
    folders = ("plane", "car", *CLASSES[2:])
    for split, count in (("train", 3), ("test", 1)):
        make_folders(tmp_path / "root" / split, dict.fromkeys(folders, count), side=32)
    data = build_dataset("cifar10", root=str(tmp_path / "root")).load(tmp_path / "cache")
    assert data.class_names == CLASSES
    assert data.train_labels.tolist() == np.repeat(np.arange(10), 3).tolist()
    cars = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "root" / "train" / "car").iterdir())]
    np.testing.assert_array_equal(data.train_images[3:6].permute(0, 2, 3, 1).numpy(), np.stack(cars))


def test_wrong_roots_are_explained(tmp_path: Path, make_folders: Make) -> None:
    with pytest.raises(DataError, match=r"data.root of cifar10: .*nowhere does not exist"):
        build_dataset("cifar10", root=str(tmp_path / "nowhere")).load(tmp_path / "cache")
    (tmp_path / "root" / "Train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"expected cifar-10-batches-py/, or train/<class>.*found: Train/"):
        build_dataset("cifar10", root=str(tmp_path / "root")).load(tmp_path / "cache")
    for split in ("train", "test"):
        make_folders(tmp_path / "other" / split, dict.fromkeys((*CLASSES[:9], "lorry"), 2))
    with pytest.raises(DataError, match="'lorry' is no class of cifar10"):
        build_dataset("cifar10", root=str(tmp_path / "other")).load(tmp_path / "cache")
