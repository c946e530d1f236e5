"""Folders, pictures and archives made to do harm."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from bdray.data import build_dataset
from bdray.data.downloads import download, unpack
from bdray.errors import DataError, TriggerError
from bdray.pictures import MAX_PIXELS
from bdray.triggers.image import ImageTrigger

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
        ImageTrigger.model_validate({"path": tmp_path / "data" / "a" / "bomb.png"}).picture(32, 32)


def test_the_largest_picture_that_is_decoded_is_larger_than_cameras_make() -> None:
    assert MAX_PIXELS > 61_000_000


def test_a_broken_picture_as_a_trigger_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(png(8, 8)[:-20])
    with pytest.raises(TriggerError, match=r"broken\.png is no picture"):
        ImageTrigger.model_validate({"path": file}).picture(32, 32)


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


def tar_with(archive: Path, member: str, outside: Path) -> None:
    """An archive of one harmless file and a hostile member; `link`: a link out of the folder and a file through it."""
    with tarfile.open(archive, "w:gz") as tar:
        for name, kind, target in (
            ("set/good.txt", tarfile.REGTYPE, ""),
            *(
                [("link", tarfile.SYMTYPE, str(outside)), ("link/evil", tarfile.REGTYPE, "")]
                if member == "link"
                else [(member, getattr(tarfile, member, tarfile.REGTYPE), "set/good.txt")]
            ),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            entry.size = 1 if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(b"x"))


def zip_with(archive: Path, member: str, outside: Path) -> None:
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("set/good.txt", b"x")
        entry = zipfile.ZipInfo("link" if member == "link" else member)
        entry.external_attr = (stat.S_IFLNK if member == "link" else stat.S_IFREG) << 16
        packed.writestr(entry, str(outside) if member == "link" else b"x")


HOSTILE = [
    *((tar_with, name) for name in ("../evil", "set/../../evil", "ABSOLUTE", "link", "LNKTYPE", "CHRTYPE", "FIFOTYPE")),
    *((zip_with, name) for name in ("../evil", "set/../../evil", "ABSOLUTE", "link")),
]


@pytest.mark.parametrize(("pack", "member"), HOSTILE)
def test_an_archive_writes_nothing_outside_its_folder(
    tmp_path: Path, pack: Callable[[Path, str, Path], None], member: str
) -> None:
    """Whatever version of Python or torchvision is there: neither decides where members go."""
    (tmp_path / "outside").mkdir()
    member = member.replace("ABSOLUTE", str(tmp_path / "outside" / "evil"))
    pack(tmp_path / "packed", member, tmp_path / "outside")
    with pytest.raises(DataError, match=r"is no file or folder inside it\); advice"):
        download(tmp_path / "cache", "set", lambda folder: unpack(tmp_path / "packed", Path(folder)), "advice")
    assert not list((tmp_path / "outside").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "outside", "packed"]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_gives_names_and_bytes_and_no_modes(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "packed"
    if kind == "tar":
        with tarfile.open(archive, "w:xz") as tar:
            entry = tarfile.TarInfo("set/deep/a.bin")
            entry.size, entry.mode = 3, 0o6777
            tar.addfile(entry, io.BytesIO(b"abc"))
    else:
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr("set/deep/a.bin", b"abc")
    unpack(archive, tmp_path / "there")
    file = tmp_path / "there" / "set" / "deep" / "a.bin"
    assert file.read_bytes() == b"abc"
    assert not file.stat().st_mode & 0o7133


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", gzip.compress(b"no tar"), gzip.compress(bytes(10_240)), None],
    ids=["nothing", "no archive", "no tar", "an empty tar", "no file"],
)
def test_what_is_no_archive_is_explained(tmp_path: Path, content: bytes | None) -> None:
    """The last is cut short; the one before it is empty."""
    tar_with(tmp_path / "packed", "set/b", tmp_path)
    content = (tmp_path / "packed").read_bytes()[:-20] if content is None else content
    (tmp_path / "packed").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot download set \(.*\); advice"):
        download(tmp_path / "cache", "set", lambda folder: unpack(tmp_path / "packed", Path(folder)), "advice")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    ("data_set", "place", "names"),
    [
        ("cifar10", "cifar-10-batches-py", ["batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))]),
        ("cifar100", "cifar-100-python", ["meta", "train", "test"]),
        ("svhn", "svhn", ["train_32x32.mat", "test_32x32.mat"]),
    ],
)
def test_a_pickle_in_the_place_of_published_files_is_not_loaded(
    tmp_path: Path, data_set: str, place: str, names: list[str]
) -> None:
    folder = tmp_path / "root" / place
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(DataError, match="wrong checksums"):
        build_dataset(data_set, root=str(tmp_path / "root")).load(tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npy", "meta.json"])
def test_a_pickle_in_the_place_of_a_cached_array_is_not_loaded(tmp_path: Path, make_folders: Make, name: str) -> None:
    data_set = build_dataset("image_folder", root=str(make_folders(tmp_path / "data", {"a": 6, "b": 6})), image_size=8)
    expected = data_set.load(tmp_path / "cache").train_labels.tolist()
    (planted,) = (tmp_path / "cache").rglob(name)
    planted.unlink()
    planted.write_bytes(b"\x93NUMPY\x01\x00" + pickle.dumps([Trap(tmp_path / "ran")]))
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
            np.load(tmp_path / "x.npy", mmap_mode=mode)
    assert not (tmp_path / "ran").exists()
