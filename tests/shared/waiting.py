"""Waiting for what processes and threads do, however long it takes them: a busy machine is slow, not wrong."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

HANG_S = 1500.0
"""Longer than anything takes on the busiest machine: what has not come by then never comes."""


def until(is_so: Callable[[], Any], process: subprocess.Popen[Any] | None = None, pause_s: float = 0.05) -> Any:
    """What `is_so` says once that is true.

    Args:
        process: one that has to be running meanwhile; what it has printed is shown where it is not.
    """
    end = time.monotonic() + HANG_S
    while not (said := is_so()):
        if process is not None and process.poll() is not None and not (said := is_so()):
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()[0]}")
        assert time.monotonic() < end, "it never happened"
        time.sleep(pause_s)
    return said
