"""Temporary folders that do not outlive their process: those of a process that was killed are removed by the next one.

<tmp>/bdray-scratch-<random>.lock    held as long as its owner lives; the system drops it, however the owner dies
<tmp>/bdray-scratch-<random>/        for its owner's eyes only (0700)
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX, _LOCK = "bdray-scratch-", ".lock"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder, removed at the end of the block."""
    folder = Path(tempfile.gettempdir(), f"{_PREFIX}{secrets.token_hex(6)}")
    # The lock first: a folder without one could not be told from somebody's whose lock is still to come.
    with _held(_lock_of(folder)):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clear_scratch(abandoned: Callable[[Path], None] = lambda folder: None) -> None:
    """Remove the folders of this user's processes that are no more.

    Args:
        abandoned: is shown each of them before it is removed.
    """
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*{_LOCK}"):
        try:
            if lock.stat().st_uid != os.getuid():
                continue
            with _held(lock):
                folder = lock.with_suffix("")
                abandoned(folder)
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            # Its owner lives, or another process clears it just now.
            continue


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    # Not a "soft" lock where there is no flock: that would outlive its killed holder.
    with FileLock(path, timeout=0, mode=0o600, fallback_to_soft=False):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
