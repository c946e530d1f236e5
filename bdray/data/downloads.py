"""Downloads that either happen completely or leave nothing."""

from __future__ import annotations

import shutil
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bdray.data.cache import locked, unfinished
from bdray.errors import DataError

STALL_SECONDS = 30.0
"""A connection on which nothing arrives for so long is given up."""


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
            # Torchvision raises RuntimeError for what is corrupt and OSError (URLError) for what is out of reach;
            # tarfile's data filter refuses a member that leads out of the folder, and a device.
            except (OSError, RuntimeError, tarfile.TarError) as error:
                raise DataError(f"cannot download {name} ({error}); {advice}") from error
            for child in (fetched / name).iterdir():
                child.rename(building / child.name)
            shutil.rmtree(fetched)


@contextmanager
def _impatient() -> Iterator[None]:
    # Torchvision opens its connections without a timeout and offers no way to give one.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
