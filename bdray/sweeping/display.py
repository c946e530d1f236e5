"""What a terminal shows while a sweep runs."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self, TextIO

from bdray.errors import StorageError
from bdray.progress import Bar
from bdray.store.storage import Storage
from bdray.store.sweep_status import RunningCondition, write_sweep_status
from bdray.sweeping import stopping
from bdray.sweeping.watching import Watcher
from bdray.terminal import Console
from bdray.values import show_duration, show_rate

_LOOK_S, _LOOK_REMOTE_S = 2.0, 15.0
"""Between two looks at what runs: on a disk, and where each is a request."""

_REST_S = 120.0
"""Between two looks at most, should one have taken long."""

_QUIET_LINE_S = 60.0
_STOPPING = "stopping: tables, report and MLflow get what there is (up to half a minute)"
_SHOWN = 4
"""Running conditions below the bar."""


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
    """Counts finished, running and failed conditions, and says what runs and how long all will take. An `Observer` of
    the cluster; a context manager.

    A condition counts once, in the state it was last heard of in: one that is started again after its process was lost
    is running, not running twice, nor failed.

    Args:
        total: conditions of the sweep that are known when it starts.
        before: of those, already finished when it starts.
        on_change: called with a condition's id when it starts or ends.
        on_count: called with the number of conditions in each state when one changes.
        on_left: called with the time left, in seconds, whenever it was estimated; None while nothing was timed.
        watcher: knows the time left; it looks from a thread, so that nothing waits for it.
        sweep: where what is shown is kept for `bdray status`.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        before: int,
        on_change: Callable[[str], None],
        *,
        on_count: Callable[[Mapping[str, int]], None] = lambda counts: None,
        on_left: Callable[[float | None], None] = lambda seconds: None,
        watcher: Watcher | None = None,
        sweep: Storage | None = None,
    ) -> None:
        super().__init__(console)
        self._total, self._before, self._on_change = total, before, on_change
        self._watcher, self._sweep = watcher, sweep
        self._status: dict[str, str] = {}
        self._counts: Counter[str] = Counter(finished=before)
        self.lost_causes: dict[str, str] = {}
        self._drawing, self._over = threading.Lock(), threading.Event()
        self._left: tuple[float, float] | None = None
        self._running: Sequence[RunningCondition] = ()
        self._thread: threading.Thread | None = None
        self._said_at, self._news = time.monotonic(), False
        self._on_count, self._on_left = on_count, on_left
        on_count(self.counts)

    def __enter__(self) -> Self:
        super().__enter__()
        if self._watcher is not None:
            self._thread = threading.Thread(target=self._watch, name="bdray-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        super().__exit__(*exc_info)

    def expect(self, count: int, done: int) -> None:
        """There are `count` conditions more than was known before, `done` of them finished elsewhere."""
        self._total += count
        self._before += done
        self._counts["finished"] += done

    @property
    def counts(self) -> Mapping[str, int]:
        """Conditions by state; together they are all that are known. `finished`: those finished before included;
        `failed`: lost and diverged ones too."""
        known = {state: self._counts[state] for state in ("finished", "running", "pruned")}
        failed = self._counts.total() - sum(known.values()) - self._counts["waiting"]
        return {**known, "failed": failed, "waiting": self._total - sum(known.values()) - failed}

    def started(self, condition_id: str) -> None:
        self.lost_causes.pop(condition_id, None)
        if self._watcher is not None:
            self._watcher.started(condition_id)
        self._changed(condition_id, "running")

    def restarts(self, condition_id: str, cause: str) -> None:
        """A condition's process was lost; it waits for another one."""
        said = f"{condition_id} lost its process ({cause}); it goes on from its last checkpoint"
        self._console.print(said, markup=False, highlight=False, soft_wrap=True)
        if self._watcher is not None:
            self._watcher.ended(condition_id, again=True)
        self._changed(condition_id, "waiting")

    def ended(self, condition_id: str, status: str) -> None:
        if self._watcher is not None:
            self._watcher.ended(condition_id)
        self._changed(condition_id, status)

    def lost(self, condition_id: str, cause: str) -> None:
        self.lost_causes[condition_id] = cause
        self.ended(condition_id, "lost")

    def _changed(self, condition_id: str, status: str) -> None:
        if condition_id in self._status:
            self._counts[self._status[condition_id]] -= 1
        self._status[condition_id] = status
        self._counts[status] += 1
        self._on_change(condition_id)
        self._on_count(self.counts)
        self._news = True
        # A line waits for the thread's next look: between a condition's end and the start of the one that takes its
        # place, a line would say that fewer run than do.
        if self._thread is None or self._console.is_terminal or self.counts["running"] + self.counts["waiting"] == 0:
            self._redraw()

    def _watch(self) -> None:
        """Until the end, in a thread: look, say, and take no more than a twentieth of the time for it."""
        assert self._watcher is not None
        every = _LOOK_S if self._sweep is None or self._sweep.is_local else _LOOK_REMOTE_S
        wait = 0.0
        while not self._over.wait(wait):
            begun = time.monotonic()
            # What is not there is seen at the next look; a storage that stays away ends the sweep, not this thread.
            with suppress(StorageError):
                self._watcher.look()
            left = self._watcher.left_s()
            self._left = None if left is None else (left, time.monotonic())
            self._on_left(left)
            sweep_status = self._watcher.sweep_status(left)
            self._running = sweep_status.running
            if self._sweep is not None:
                write_sweep_status(self._sweep, sweep_status)
            self._redraw()
            wait = max(every, min(_REST_S, 20 * (time.monotonic() - begun)))

    def _redraw(self) -> None:
        counts = self.counts
        done = counts["finished"] + counts["failed"] + counts["pruned"]
        state = f"{counts['running']} running, {counts['failed']} failed"
        state += f", {counts['pruned']} pruned" if counts["pruned"] else ""
        left = self._time_left() if done < self._total else None
        said = f", about {left} left" if left else ""
        running = [running_line(one) for one in self._running]
        runs = f"; {running[0]}" if running and counts["running"] else ""
        # The supervisor has said so already, but this bar is drawn over it.
        below = [_STOPPING] * stopping.asked() + running[:_SHOWN]
        line = f"{done}/{self._total} conditions done, {state}{said}{runs}"
        # Where there is no terminal, a line a minute is enough while nothing happens.
        is_due = self._news or self._console.is_terminal or time.monotonic() - self._said_at > _QUIET_LINE_S
        with self._drawing:
            if is_due and not self._over.is_set():
                self._said_at, self._news = time.monotonic(), False
                self.show("sweep", done, self._total, note=state, line=line, left=left or "-", below=below)

    def _time_left(self) -> str | None:
        if self._left is None:
            return None
        seconds, at = self._left
        return show_duration(max(0.0, seconds - (time.monotonic() - at)))


def running_line(running: RunningCondition) -> str:
    """What runs and how far it is: `patch-rate=0.05-s0-8f3a21: poison, epoch 3 of 8 done, 812 images/s`."""
    if not running.stage:
        return f"{running.label}: in its first epoch"
    rate = f", {show_rate(running.images_per_second)} images/s" if running.images_per_second else ""
    said = f"; now {', then '.join(running.then)}" if running.then else rate
    return f"{running.label}: {running.stage}, epoch {running.epoch} of {running.epochs} done{said}"


class DeliveryProgress(Bar):
    """Counts the conditions that MLflow has; says nothing of what takes a moment only."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, quiet_seconds=2.0)
        self._delivered: set[str] = set()

    def delivered(self, condition_id: str, total: int) -> None:
        self._delivered.add(condition_id)
        done = len(self._delivered)
        self.show("MLflow", done, total, line=f"{done}/{total} conditions are in MLflow")
