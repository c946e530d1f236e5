"""Folders, pictures and archives made to do harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from bdray.data import build_dataset
from bdray.data.decoding import MAX_PIXELS
from bdray.data.downloads import download
from bdray.errors import DataError, TriggerError
from bdray.triggers import build_trigger

Make = Callable[..., Path]


def png(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_picture_bomb_is_named_before_it_is_decoded(tmp_path: Path, make_folders: Make, side: int) -> None:
    make_folders(tmp_path / "data", {"a": 6, "b": 6})
    (tmp_path / "data" / "a" / "bomb.png").write_bytes(png(side, side))
    with pytest.raises(DataError, match=r"cannot read 1 image file(.|\n)*bomb\.png: .*pixels"):
        build_dataset("image_folder", root=str(tmp_path / "data"), image_size=8).load()
    with pytest.raises(TriggerError, match="pixels"):
        build_trigger("image", path=str(tmp_path / "data" / "a" / "bomb.png")).picture(32, 32)


def test_the_largest_picture_that_is_decoded_is_larger_than_cameras_make() -> None:
    assert MAX_PIXELS > 61_000_000


def test_a_broken_picture_as_a_trigger_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(png(8, 8)[:-20])
    with pytest.raises(TriggerError, match=r"broken\.png is no picture"):
        build_trigger("image", path=str(file)).picture(32, 32)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "broken link"])
def test_what_is_called_like_a_picture_and_is_no_file(tmp_path: Path, make_folders: Make, kind: str) -> None:
    make_folders(tmp_path / "data", {"a": 6, "b": 6})
    planted = tmp_path / "data" / "a" / "x.png"
    if kind == "pipe":
        os.mkfifo(planted)
    elif kind == "device":
        planted.symlink_to("/dev/zero")
    elif kind == "folder":
        planted.mkdir()
    else:
        planted.symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"x\.png"):
        build_dataset("image_folder", root=str(tmp_path / "data"))


def test_a_link_to_a_picture_is_the_picture_and_one_to_a_secret_is_never_shown(
    tmp_path: Path, make_folders: Make
) -> None:
    make_folders(tmp_path / "data", {"a": 6, "b": 6})
    secret = tmp_path / "secret"
    secret.write_text("password: hunter2")
    (tmp_path / "data" / "a" / "x.png").symlink_to(secret)
    with pytest.raises(DataError, match=r"x\.png") as raised:
        build_dataset("image_folder", root=str(tmp_path / "data"), image_size=8).load()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("member", ["../evil", "/tmp/bdray-evil", "link", "device"])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path: Path, member: str) -> None:
    from torchvision.datasets.utils import extract_archive

    archive = tmp_path / "data.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo(member)
        if member == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, str(tmp_path)
            tar.addfile(entry)
            entry = tarfile.TarInfo("link/evil")
        elif member == "device":
            entry.type = tarfile.CHRTYPE
        entry.size = 1 if entry.isreg() else 0
        tar.addfile(entry, io.BytesIO(b"x"))
    before = sorted(tmp_path.iterdir())

    def fetch(folder: str) -> None:
        extract_archive(str(archive), folder)
        Path(folder, "set").mkdir()

    try:
        download(tmp_path / "cache", "set", fetch, "advice")
    except DataError as error:
        assert "advice" in str(error)
    assert not Path("/tmp/bdray-evil").exists()
    assert sorted(tmp_path.iterdir()) == [*sorted([*before, tmp_path / "cache"])]
    assert not list((tmp_path / "cache").rglob("evil"))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_in_the_place_of_cifar10_is_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(DataError, match="wrong checksums"):
        build_dataset("cifar10", root=str(tmp_path / "root")).load(tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npy", "meta.json"])
def test_a_pickle_in_the_place_of_a_cached_array_is_not_loaded(tmp_path: Path, make_folders: Make, name: str) -> None:
    from bdray.data.cache import _verified

    data_set = build_dataset("image_folder", root=str(make_folders(tmp_path / "data", {"a": 6, "b": 6})), image_size=8)
    expected = data_set.load(tmp_path / "cache").train_labels.tolist()
    (planted,) = (tmp_path / "cache").rglob(name)
    planted.unlink()
    planted.write_bytes(b"\x93NUMPY\x01\x00" + pickle.dumps([Trap(tmp_path / "ran")]))
    _verified.clear()
    assert data_set.load(tmp_path / "cache").train_labels.tolist() == expected
    assert not (tmp_path / "ran").exists()


def test_numpy_runs_no_pickle_even_where_the_checksum_is_right(tmp_path: Path) -> None:
    """Whoever may write into the cache can write a checksum too."""
    import numpy as np

    array = np.empty(1, dtype=object)
    array[0] = Trap(tmp_path / "ran")
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    for mode in ("r", None):
        with pytest.raises(ValueError, match=r"Array can't be memory-mapped|Object arrays cannot be loaded"):
            np.load(tmp_path / "x.npy", mmap_mode=mode)  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()
