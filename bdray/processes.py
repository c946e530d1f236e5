"""Whether a process is still there."""

from __future__ import annotations

import psutil


def is_alive(process: psutil.Process | int) -> bool:
    """Whether a process runs. One that has ended but that its parent has not asked about is gone: where nobody does
    (many containers have no init), such zombies stay for ever.

    Args:
        process: or its number.
    """
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return bool(found.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
