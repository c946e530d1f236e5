"""One deliverer per sweep: a lock that the kernel drops when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path | None, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Holds the lock file for the block and tells whether it could be had within `wait_s` seconds.

    Args:
        path: the lock file, made with its folder when missing; None (a storage without locks) always succeeds.
        wait_s: how long to wait for another holder.
    """
    if path is None:
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _acquire(descriptor, time.monotonic() + wait_s)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True
