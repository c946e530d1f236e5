"""Says how far a long piece of work is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS = 10.0
"""Time between two plain lines."""


class _TimeLeft(TimeRemainingColumn):
    """What `Bar.show` was told, or else what rich makes of the last 30 seconds."""

    def render(self, task: Task) -> Text:
        told = task.fields["left"]
        return super().render(task) if told is None else Text(told, style="progress.remaining")


class _Rows(Progress):
    """A bar, and lines below it."""

    below: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for line in self.below:
            # How far something is stands at the line's end: it goes on below its beginning, and loses nothing.
            yield Padding(Text(line, style="dim"), (0, 0, 0, 2), expand=False)


class Bar:
    """One bar, for one piece of work after another. A context manager; on a terminal the bar goes away at the end.

    Args:
        quiet_seconds: work that takes less is not reported at all.
    """

    def __init__(self, console: Console, *, quiet_seconds: float = 0.0) -> None:
        self._console = console
        self._bar = _Rows(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            _TimeLeft(),
            TextColumn("left after"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._next = time.monotonic() + quiet_seconds
        self._said = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def show(
        self,
        what: str,
        done: int,
        total: int,
        *,
        note: str = "",
        line: str = "",
        left: str | None = None,
        below: Sequence[str] = (),
    ) -> None:
        """Call it as often as anything changes.

        Args:
            note: what else a terminal shows beside the numbers.
            line: what is said where there is no terminal; nothing if empty. The last one (`done` is `total`) is said
                at once if any was said before it.
            left: the time left, where the caller knows better than the last 30 seconds.
            below: what else a terminal shows below the bar.
        """
        due = time.monotonic() >= self._next
        if self._console.is_terminal:
            if due:
                self._bar.below = below
                self._draw(what, done, total, note=note, left=left)
        elif line and (due or (self._said and done == total)):
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._next, self._said = time.monotonic() + LINE_SECONDS, True

    def _draw(self, what: str, done: int, total: int, **fields: Any) -> None:
        if not self._bar.tasks or self._bar.tasks[0].description != what:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(what, total=total, completed=done, **fields)
        self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, **fields)
