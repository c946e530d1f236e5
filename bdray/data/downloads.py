"""Downloads that either happen completely or leave nothing."""

from __future__ import annotations

import shutil
import socket
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from bdray.data.base import DataSet
from bdray.data.cache import locked, unfinished
from bdray.data.folders import existing_root, is_empty
from bdray.errors import DataError

STALL_SECONDS = 30.0
"""A connection on which nothing arrives for so long is given up."""


def filled_root(data_set: DataSet, downloads: Path, fetch: Callable[[str], object], layout: str) -> Path:
    """The folder that holds a data set, downloaded (`DOWNLOADED`) where there is no root or an empty one.

    Args:
        downloads: as in `DataSet.source`.
        fetch: as in `download`.
        layout: what a root may look like, for the message.

    Raises:
        DataError: the root is no folder, or the download failed.
    """
    root = downloads if data_set.root is None else existing_root(data_set.root, data_set.name)
    if data_set.root is None or is_empty(root):
        download(root, str(data_set.DOWNLOADED), fetch, f"set data.root to a folder that holds {layout}")
    return root


def download(folder: Path, name: str, fetch: Callable[[str], object], advice: str) -> None:
    """Makes the folder `folder/name` by `fetch`, unless it is there.

    Args:
        folder: where it goes; made if need be.
        name: what `fetch` makes inside the folder it is given; everything else it leaves is dropped.
        fetch: downloads, verifies checksums, unpacks.
        advice: what the user can do instead, for the message.

    Raises:
        DataError: it cannot be reached, has a wrong checksum, or there is no room.
    """
    target = folder / name
    if target.is_dir():
        return
    with locked(target):
        if target.is_dir():
            return
        with unfinished(target) as building:
            fetched = building / "fetched"
            fetched.mkdir()
            try:
                with _impatient():
                    fetch(str(fetched))
            # Torchvision raises RuntimeError for what is corrupt and OSError (URLError) for what is out of reach.
            except (OSError, RuntimeError, *UNREADABLE) as error:
                said = " ".join(str(error).split())
                raise DataError(f"cannot download {name} ({said}); {advice}") from error
            if not (fetched / name).is_dir():
                raise DataError(f"cannot download {name} (there is no such folder in the archive); {advice}")
            for child in (fetched / name).iterdir():
                child.rename(building / child.name)
            shutil.rmtree(fetched)


def unpack(archive: Path, folder: Path) -> None:
    """Writes the files of a tar or zip archive into `folder`, which no other process writes into.

    Of an archive only names and bytes are taken, no modes, owners or times. Neither `tarfile`, whose filters not every
    Python 3.11 has, nor torchvision decides where they go. Pictures need no links, so an archive with one is refused.

    Raises:
        RuntimeError: a member is no file or folder, or leads out of `folder`; it and what follows is not written.
        OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError: it cannot be read or written.
    """
    for name, kind, content in (_zipped if zipfile.is_zipfile(archive) else _tarred)(archive):
        place = PurePosixPath(name)
        if kind not in ("file", "folder") or place.is_absolute() or ".." in place.parts or "\0" in name:
            raise RuntimeError(f"{name!r} in {archive.name} is no file or folder inside it")
        target = folder / place
        (target if kind == "folder" else target.parent).mkdir(parents=True, exist_ok=True)
        if kind == "file":
            with content() as source, target.open("wb") as written:
                shutil.copyfileobj(source, written)


UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)
"""What reading an archive raises beside `OSError`."""

_Members = Iterator[tuple[str, str, Callable[[], Any]]]
"""Names, kinds (`file`, `folder`, or anything else), and what opens a file."""


def _tarred(archive: Path) -> _Members:
    with tarfile.open(archive) as opened:
        for member in opened:
            kind = "file" if member.isreg() else "folder" if member.isdir() else "other"
            yield member.name, kind, partial(opened.extractfile, member)


def _zipped(archive: Path) -> _Members:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            # The upper half is a Unix mode, or 0 where it was not packed on Unix.
            is_other = stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
            kind = "other" if is_other else "folder" if member.is_dir() else "file"
            yield member.filename, kind, partial(opened.open, member)


@contextmanager
def _impatient() -> Iterator[None]:
    # Torchvision opens its connections without a timeout and offers no way to give one.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
