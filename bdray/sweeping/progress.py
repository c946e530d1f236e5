"""What a terminal shows while a sweep runs: a bar where there is one, plain lines elsewhere."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0


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


class SweepProgress:
    """Counts finished, running and failed conditions. An `Observer` of the cluster; a context manager.

    Args:
        total: conditions of the sweep.
        before: of those, already finished when it starts.
        on_change: called with a condition's id when it starts or ends (the tracking mirror wants to know).
    """

    def __init__(self, console: Console, total: int, before: int, on_change: Callable[[str], None]) -> None:
        self._console, self._total, self._on_change = console, total, on_change
        self.finished, self.failed = before, 0
        self._running: set[str] = set()
        self.lost_causes: dict[str, str] = {}
        self._before, self._started, self._said = before, time.monotonic(), time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]sweep[/bold]"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total, completed=before, state="")

    def __enter__(self) -> SweepProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def running(self) -> int:
        return len(self._running)

    def started(self, condition_id: str) -> None:
        self._running.add(condition_id)
        self._changed(condition_id)

    def restarts(self, condition_id: str, cause: str) -> None:
        self._running.discard(condition_id)
        self._console.print(
            f"{condition_id} lost its process ({cause}); it goes on from its last checkpoint",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        self._changed(condition_id)

    def ended(self, condition_id: str, status: str) -> None:
        self._running.discard(condition_id)
        self.finished += status == "finished"
        self.failed += status != "finished"
        self._changed(condition_id)

    def lost(self, condition_id: str, cause: str) -> None:
        self._running.discard(condition_id)
        self.failed += 1
        self.lost_causes[condition_id] = cause
        self._changed(condition_id)

    def _changed(self, condition_id: str) -> None:
        self._on_change(condition_id)
        done = self.finished + self.failed
        minutes = max((time.monotonic() - self._started) / 60, 1e-9)
        rate = (done - self._before) / minutes
        state = f"{self.running} running, {self.failed} failed, {rate:.1f}/min"
        self._bar.update(self._task, completed=done, state=state)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said > LINE_EVERY_SECONDS or done == self._total):
            self._said = now
            left = f", about {(self._total - done) / rate:.1f} min left" if rate and done < self._total else ""
            self._console.print(f"{done}/{self._total} conditions done, {state}{left}", highlight=False)
