"""What a terminal shows while a sweep runs."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from bdray.progress import Bar
from bdray.terminal import Console


class UnbrokenStream(io.TextIOBase):
    """A stream whose reader may go away (`| head`, a closed terminal): a sweep goes on without it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(BrokenPipeError, OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError, OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class SweepProgress(Bar):
    """Counts finished, running and failed conditions. An `Observer` of the cluster; a context manager.

    A condition counts once, in the state it was last heard of in: one that is started again after its process was lost
    is running, not running twice, nor failed.

    Args:
        total: conditions of the sweep that are known when it starts.
        before: of those, already finished when it starts.
        on_change: called with a condition's id when it starts or ends (the tracking mirror wants to know).
    """

    def __init__(self, console: Console, total: int, before: int, on_change: Callable[[str], None]) -> None:
        super().__init__(console)
        self._total, self._before, self._on_change = total, before, on_change
        self._status: dict[str, str] = {}
        self._counts: Counter[str] = Counter(finished=before)
        self.lost_causes: dict[str, str] = {}
        self._begun = time.monotonic()

    def expect(self, count: int, done: int) -> None:
        """There are `count` conditions more than was known before, `done` of them finished elsewhere."""
        self._total += count
        self._before += done
        self._counts["finished"] += done

    @property
    def running(self) -> int:
        return self._counts["running"]

    @property
    def finished(self) -> int:
        """Those finished before included."""
        return self._counts["finished"]

    @property
    def pruned(self) -> int:
        return self._counts["pruned"]

    @property
    def failed(self) -> int:
        """Lost and diverged ones included."""
        return self._counts.total() - self.running - self.finished - self.pruned - self._counts["waiting"]

    def started(self, condition_id: str) -> None:
        self.lost_causes.pop(condition_id, None)
        self._changed(condition_id, "running")

    def restarts(self, condition_id: str, cause: str) -> None:
        """A condition's process was lost; it waits for another one."""
        said = f"{condition_id} lost its process ({cause}); it goes on from its last checkpoint"
        self._console.print(said, markup=False, highlight=False, soft_wrap=True)
        self._changed(condition_id, "waiting")

    def ended(self, condition_id: str, status: str) -> None:
        self._changed(condition_id, status)

    def lost(self, condition_id: str, cause: str) -> None:
        self.lost_causes[condition_id] = cause
        self._changed(condition_id, "lost")

    def _changed(self, condition_id: str, status: str) -> None:
        if condition_id in self._status:
            self._counts[self._status[condition_id]] -= 1
        self._status[condition_id] = status
        self._counts[status] += 1
        self._on_change(condition_id)
        done = self.finished + self.failed + self.pruned
        minutes = max((time.monotonic() - self._begun) / 60, 1e-9)
        rate = (done - self._before) / minutes
        pruned = f"{self.pruned} pruned, " if self.pruned else ""
        state = f"{self.running} running, {self.failed} failed, {pruned}{rate:.1f}/min"
        left = f", about {(self._total - done) / rate:.1f} min left" if rate and done < self._total else ""
        line = f"{done}/{self._total} conditions done, {state}{left}"
        self.show("sweep", done, self._total, note=state, line=line)


class DeliveryProgress(Bar):
    """Counts the conditions that MLflow has; says nothing of what takes a moment only."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, quiet_seconds=2.0)
        self._delivered: set[str] = set()

    def delivered(self, condition_id: str, total: int) -> None:
        self._delivered.add(condition_id)
        done = len(self._delivered)
        self.show("MLflow", done, total, line=f"{done}/{total} conditions are in MLflow")
