from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import SVHN

from bdray.data import build_dataset
from bdray.data.svhn import FILES
from bdray.errors import DataError


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> dict[str, np.ndarray]:
    """Small files of SVHN's exact form (`32 x 32 x 3 x N`; the digit 0 is labelled 10), served over HTTP from this
    machine; torchvision takes them for the real ones. Returns their pixels, `N x 3 x 32 x 32`, by split."""
    pixels, listed = {}, dict(SVHN.split_list)
    for split in ("train", "test"):
        images = np.random.default_rng(len(split)).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
        labels = np.array([*range(10, 0, -1)] * 2, dtype=np.uint8)[:, None]
        file = tmp_path / "server" / f"{split}_32x32.mat"
        savemat(file, {"X": images, "y": labels})
        listed[split] = [f"{server}/{file.name}", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
        pixels[split] = images.transpose(3, 2, 0, 1)
    monkeypatch.setattr(SVHN, "split_list", listed)
    return pixels


def test_the_checksums_are_torchvisions() -> None:
    assert {name: md5 for _, name, md5 in (SVHN.split_list["train"], SVHN.split_list["test"])} == FILES


@pytest.mark.parametrize("place", ["download", "root", "root/svhn"])
def test_pictures_and_digits(tmp_path: Path, published: dict[str, np.ndarray], place: str) -> None:
    root = None if place == "download" else str(tmp_path / "root")
    if root is not None:
        (tmp_path / place).mkdir(parents=True)
        for name in FILES:
            shutil.move(tmp_path / "server" / name, tmp_path / place)
    data = build_dataset("svhn", root=root).load(tmp_path / "cache")
    np.testing.assert_array_equal(data.train_images.numpy(), published["train"])
    np.testing.assert_array_equal(data.test_images.numpy(), published["test"])
    assert data.train_labels.tolist() == [0, 9, 8, 7, 6, 5, 4, 3, 2, 1] * 2
    assert data.class_names == tuple("0123456789")


def test_a_changed_file_is_not_read(tmp_path: Path, published: dict[str, np.ndarray]) -> None:
    (tmp_path / "root").mkdir()
    for name in FILES:
        (tmp_path / "root" / name).write_bytes((tmp_path / "server" / name).read_bytes() + b" ")
    with pytest.raises(DataError, match="root is incomplete or has wrong checksums"):
        build_dataset("svhn", root=str(tmp_path / "root")).load(tmp_path / "cache")


def test_a_wrong_download_leaves_nothing(
    tmp_path: Path, published: dict[str, np.ndarray], visible: Callable[[Path], list[str]]
) -> None:
    (tmp_path / "server" / "test_32x32.mat").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"cannot download svhn \(.*corrupted.*set data.root"):
        build_dataset("svhn").load(tmp_path / "cache")
    assert visible(tmp_path / "cache") == ["arrays", "downloads", "svhn"]


def test_class_folders_and_wrong_roots(tmp_path: Path, make_folders: Callable[..., Path]) -> None:
    for split in ("train", "test"):
        make_folders(tmp_path / "root" / split, dict.fromkeys("9876543210", 1), side=8)
    data = build_dataset("svhn", root=str(tmp_path / "root"), image_size=8).load(tmp_path / "cache")
    assert data.test_labels.tolist() == list(range(10))
    (tmp_path / "other" / "Train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"data.root of svhn: expected train_32x32.mat .*found: Train/"):
        build_dataset("svhn", root=str(tmp_path / "other")).load(tmp_path / "cache")
