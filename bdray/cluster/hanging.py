"""Ends a process whose GPU has stopped answering: Ray sees a lost process, and its condition goes on elsewhere."""

from __future__ import annotations

import faulthandler
import time
from typing import Self

LEAST_S = 1800.0
"""So long may any training step take, whatever those before it took."""

TIMES = 100
"""So many times as long as the longest step of its epoch may the next one take, and as the epoch's training what is
measured after it."""


class HangWatch:
    """Hears of the steps of a trial; a context manager. Between epochs, as while data is prepared, nothing is watched.

    Python's own watchdog does it, which needs neither the interpreter nor its lock: a hung call may hold that.

    Args:
        least_s: see `LEAST_S`; None: nothing is watched.
    """

    def __init__(self, least_s: float | None = LEAST_S) -> None:
        self._least_s = least_s
        self._begun: float | None = None
        self._last = self._longest = self._armed = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.pause()

    def step(self, batch: int, batches: int) -> None:
        """After every training step. Cheap: the watchdog is set anew once a second."""
        if self._least_s is None:
            return
        now = time.monotonic()
        if self._begun is None:
            self._begun, self._longest, self._armed = now, 0.0, 0.0
        else:
            self._longest = max(self._longest, now - self._last)
        self._last = now
        if batch >= batches or now - self._armed > 1.0:
            self._armed, expected = now, self._longest if batch < batches else now - self._begun
            limit_s = max(self._least_s, TIMES * expected)
            faulthandler.dump_traceback_later(limit_s, exit=True)

    def pause(self) -> None:
        """Until the next step nothing is watched."""
        if self._begun is not None:
            self._begun = None
            faulthandler.cancel_dump_traceback_later()
