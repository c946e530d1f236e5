from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from bdray.data import build_dataset
from bdray.data.cifar100 import CLASSES, MD5
from bdray.errors import DataError


@pytest.fixture
def archive(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A small archive of CIFAR-100's exact form, served over HTTP from this machine; torchvision takes it for the real
    one. Returns its pixels, `N x 3072`, by split; coarse labels are wrong on purpose."""
    random = np.random.default_rng(0)
    pixels = {name: random.integers(0, 256, (200, 3072), dtype=np.uint8) for name in ("train", "test")}
    files = {
        name: {"data": data, "fine_labels": [*range(99, -1, -1)] * 2, "coarse_labels": [7] * 200}
        for name, data in pixels.items()
    }
    files["meta"] = {"fine_label_names": list(CLASSES), "coarse_label_names": ["x"] * 20}
    sums = {}
    with tarfile.open(tmp_path / "server" / CIFAR100.filename, "w:gz") as tar:
        for name, content in files.items():
            data = pickle.dumps(content)
            sums[name] = hashlib.md5(data).hexdigest()
            entry = tarfile.TarInfo(f"{CIFAR100.base_folder}/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    packed = (tmp_path / "server" / CIFAR100.filename).read_bytes()
    monkeypatch.setattr(CIFAR100, "url", f"{server}/{CIFAR100.filename}")
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(packed).hexdigest())
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    return pixels


def test_the_checksum_is_the_published_one() -> None:
    assert CIFAR100.tgz_md5 == MD5


def test_downloads_and_reads_the_fine_labels(tmp_path: Path, archive: dict[str, np.ndarray]) -> None:
    data = build_dataset("cifar100").load(tmp_path / "cache")
    np.testing.assert_array_equal(data.train_images.numpy(), archive["train"].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(data.test_images.numpy(), archive["test"].reshape(-1, 3, 32, 32))
    assert data.train_labels.tolist() == [*range(99, -1, -1)] * 2
    assert data.class_names == CLASSES
    (tmp_path / "server" / CIFAR100.filename).unlink()
    assert len(build_dataset("cifar100", train_limit=100).load(tmp_path / "cache").train_labels) == 100


def test_what_is_not_the_archive_is_refused(tmp_path: Path, archive: dict[str, np.ndarray]) -> None:
    (tmp_path / "server" / CIFAR100.filename).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"cannot download cifar-100-python \(.*corrupted"):
        build_dataset("cifar100").load(tmp_path / "cache")
    folder = tmp_path / "root" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"no pickle of theirs")
    with pytest.raises(DataError, match="cifar-100-python is incomplete or has wrong checksums"):
        build_dataset("cifar100", root=str(tmp_path / "root")).load(tmp_path / "cache")


def test_class_folders_are_numbered_as_the_archive_does(tmp_path: Path, make_folders: Callable[..., Path]) -> None:
    for split in ("train", "test"):
        make_folders(tmp_path / "root" / split, dict.fromkeys(CLASSES, 1), side=8)
    data = build_dataset("cifar100", root=str(tmp_path / "root"), image_size=8).load(tmp_path / "cache")
    assert data.class_names == CLASSES
    assert data.train_labels.tolist() == list(range(100))
    (tmp_path / "root" / "train" / "apple").rename(tmp_path / "root" / "train" / "appel")
    (tmp_path / "root" / "test" / "apple").rename(tmp_path / "root" / "test" / "appel")
    with pytest.raises(DataError, match="'appel' is no class of cifar100; did you mean 'apple'"):
        build_dataset("cifar100", root=str(tmp_path / "root"), image_size=8).load(tmp_path / "cache")
