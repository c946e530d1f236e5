"""Says how far a long piece of work is, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 3.0
"""Work that takes less is not reported at all."""
LINE_SECONDS = 15.0
"""Time between two plain lines."""


@contextmanager
def progress(what: str, total: int, *, quiet_seconds: float = QUIET_SECONDS) -> Iterator[Callable[[int], None]]:
    """Gives a function that is called with the number of things just done, out of `total`."""
    console = Console(stderr=True, soft_wrap=True)
    done, next_report = 0, time.monotonic() + quiet_seconds
    with ExitStack() as shown:
        bar: Progress | None = None

        def advance(count: int) -> None:
            nonlocal done, next_report, bar
            done += count
            if bar is None and time.monotonic() >= next_report:
                if console.is_terminal:
                    bar = shown.enter_context(_bar(console))
                    bar.add_task(what, total=total)
                else:
                    console.print(f"{what}: {done:,} of {total:,}", highlight=False)
                    next_report = time.monotonic() + LINE_SECONDS
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)

        yield advance


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
