from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from torchvision import datasets

from bdray.data import build_dataset
from bdray.errors import DataError

Make = Callable[..., Path]


@pytest.fixture
def canonical(tmp_path: Path) -> Path:
    """The canonical files in small: picture `n` (from 1) is all of level `n % 256` and of class `(n - 1) % 102`."""
    folder = tmp_path / "root" / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    numbers = np.arange(1, 307)
    for number in numbers.tolist():
        Image.new("L", (8, 8), number % 256).save(folder / "jpg" / f"image_{number:05d}.jpg", quality=100)
    savemat(folder / "imagelabels.mat", {"labels": ((numbers - 1) % 102 + 1)[None].astype(np.uint8)})
    ids = np.random.default_rng(0).permutation(numbers.reshape(3, 102), axis=1).astype(np.uint16)
    savemat(folder / "setid.mat", {"trnid": ids[:1], "valid": ids[1:2], "tstid": ids[2:]})
    return tmp_path / "root"


def test_canonical_files(tmp_path: Path, canonical: Path) -> None:
    data = build_dataset("flowers102", root=str(canonical), image_size=8).load(tmp_path / "cache")
    assert data.class_names == tuple(datasets.Flowers102.classes)
    assert data.train_labels.bincount().tolist() == [2] * 102
    assert data.test_labels.bincount().tolist() == [1] * 102
    assert data.train_images[:, 0, 0, 0].tolist() == [number % 256 for number in range(1, 205)]
    assert data.train_labels.tolist() == [(number - 1) % 102 for number in range(1, 205)]


def test_a_changed_picture_is_noticed(tmp_path: Path, canonical: Path) -> None:
    data_set = build_dataset("flowers102", root=str(canonical), image_size=8)
    before = data_set.load(tmp_path / "cache").fingerprint
    Image.new("L", (8, 8), 200).save(canonical / "flowers-102" / "jpg" / "image_00007.jpg")
    assert data_set.load(tmp_path / "cache").fingerprint != before


def test_incomplete_files_are_explained(tmp_path: Path, canonical: Path) -> None:
    data_set = build_dataset("flowers102", root=str(canonical), image_size=8)
    (canonical / "flowers-102" / "jpg" / "image_00007.jpg").unlink()
    with pytest.raises(DataError, match=r"cannot read 1 image file.*\n.*image_00007.jpg"):
        data_set.load(tmp_path / "cache")
    (canonical / "flowers-102" / "imagelabels.mat").write_bytes(b"no labels")
    with pytest.raises(DataError, match=r"cannot read imagelabels.mat and setid.mat"):
        data_set.load(tmp_path / "cache")
    (canonical / "flowers-102" / "setid.mat").unlink()
    with pytest.raises(DataError, match=r"flowers-102 has no setid.mat; found: imagelabels.mat, jpg/"):
        data_set.load(tmp_path / "cache")


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("imagelabels.mat", "labels", 0),
        ("imagelabels.mat", "labels", 103),
        ("setid.mat", "trnid", 307),
        ("setid.mat", "valid", 0),
        ("setid.mat", "tstid", 1),
    ],
)
def test_damaged_tables_are_explained(tmp_path: Path, canonical: Path, file: str, field: str, value: int) -> None:
    path = canonical / "flowers-102" / file
    content = {name: array for name, array in loadmat(path).items() if not name.startswith("__")}
    content[field][0, 5] = value
    savemat(path, content)
    with pytest.raises(DataError, match=r"setid.mat in .* do not give every picture one class of 102"):
        build_dataset("flowers102", root=str(canonical), image_size=8).load(tmp_path / "cache")


def test_class_folders(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path / "root", {str(number): 2 for number in range(1, 103)}, side=8)
    data = build_dataset("flowers102", root=str(tmp_path / "root"), image_size=8).load(tmp_path / "cache")
    assert data.num_classes == 102
    assert data.test_labels.bincount().tolist() == [1] * 102
    (tmp_path / "root" / "103").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "root" / "103" / "a.png")
    Image.new("L", (8, 8)).save(tmp_path / "root" / "103" / "b.png")
    with pytest.raises(DataError, match=r"expected flowers-102/ or 102 class folders in .*, not 103"):
        build_dataset("flowers102", root=str(tmp_path / "root")).load(tmp_path / "cache")


def test_downloads_once(tmp_path: Path, canonical: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    with tarfile.open(tmp_path / "server" / "102flowers.tgz", "w:gz") as tar:
        tar.add(canonical / "flowers-102" / "jpg", "jpg")
    for kind, name in (("image", "102flowers.tgz"), ("label", "imagelabels.mat"), ("setid", "setid.mat")):
        if kind != "image":
            shutil.copy(canonical / "flowers-102" / name, tmp_path / "server")
        files[kind] = (name, hashlib.md5((tmp_path / "server" / name).read_bytes()).hexdigest())
    monkeypatch.setattr(datasets.Flowers102, "_download_url_prefix", f"{server}/")
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    data = build_dataset("flowers102", image_size=8).load(tmp_path / "cache")
    assert data.fingerprint == build_dataset("flowers102", root=str(canonical), image_size=8).load().fingerprint
    assert not list((tmp_path / "cache").rglob("*.tgz"))


@pytest.mark.usefixtures("offline")
def test_out_of_reach_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download flowers-102 .*set data.root to a folder that holds"):
        build_dataset("flowers102").load(tmp_path)
    assert not (tmp_path / "downloads" / "flowers102" / "flowers-102").exists()
