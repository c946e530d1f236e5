from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bdray.data import build_dataset, flowers
from bdray.data.flowers import CLASSES
from bdray.errors import DataError

Make = Callable[..., Path]
PLURALS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


@pytest.fixture
def archive(tmp_path: Path, server: str, make_folders: Make, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive of the form of TensorFlow's, served from this machine in its place."""
    photos = make_folders(tmp_path / "packed" / "flower_photos", dict.fromkeys(PLURALS, 10))
    (photos / "LICENSE.txt").write_text("CC-BY")
    file = tmp_path / "server" / "flower_photos.tgz"
    with tarfile.open(file, "w:gz") as tar:
        tar.add(photos, "flower_photos")
    monkeypatch.setattr(flowers, "URL", f"{server}/{file.name}")
    monkeypatch.setattr(flowers, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


@pytest.mark.parametrize("rooted", [False, True])
def test_downloads_once_and_keeps_the_licence(tmp_path: Path, archive: Path, rooted: bool) -> None:
    place = tmp_path / ("root" if rooted else "cache/downloads/flowers")
    if rooted:
        place.mkdir()
    data_set = build_dataset("flowers", root=str(place) if rooted else None, image_size=8)
    assert data_set.would_download(tmp_path / "cache")
    data = data_set.load(tmp_path / "cache")
    assert data.class_names == CLASSES
    assert data.train_labels.bincount().tolist() == [8] * 5
    assert (place / "flower_photos" / "LICENSE.txt").read_text() == "CC-BY"
    assert not list(place.rglob("*.tgz"))
    archive.unlink()
    assert not data_set.would_download(tmp_path / "cache")
    again = build_dataset("flowers", root=str(place) if rooted else None, image_size=8, train_limit=20)
    assert again.load(tmp_path / "cache").train_labels.bincount().tolist() == [4] * 5


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, archive: Path, visible: Callable[[Path], list[str]]) -> None:
    archive.write_bytes(archive.read_bytes() + b"more")
    with pytest.raises(DataError, match=r"cannot download flower_photos \(invalid hash value"):
        build_dataset("flowers").load(tmp_path / "cache")
    assert visible(tmp_path / "cache") == ["downloads", "flowers"]


@pytest.mark.usefixtures("offline")
def test_out_of_reach_is_explained(tmp_path: Path) -> None:
    said = r"cannot download flower_photos.*flowers/<class>/\*.jpg or <class>/\*.jpg.*tulip"
    with pytest.raises(DataError, match=said):
        build_dataset("flowers").load(tmp_path)


def test_the_sizes_of_the_published_archive_are_known_before_it_is_here() -> None:
    assert flowers.SHA256 == "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
    assert sum(flowers.SIZES) == 3_670
    assert sum(build_dataset("flowers").train_sizes() or ()) == 3_670 - 735


@pytest.mark.parametrize("below", ["flowers", "flower_photos", "."])
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
    make_folders(tmp_path / "root", dict.fromkeys(CLASSES[:4], 2))
    with pytest.raises(DataError, match="class 'tulip' has no folder; found: daisy, dandelion, rose, sunflower"):
        build_dataset("flowers", root=str(tmp_path / "root")).load(tmp_path)
    make_folders(tmp_path / "root", {"tulp": 2})
    with pytest.raises(DataError, match="'tulp' is no class of flowers; did you mean 'tulip'"):
        build_dataset("flowers", root=str(tmp_path / "root")).load(tmp_path)
