"""Says how far a long piece of work is, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_SECONDS = 3.0
"""Work that takes less is not reported at all."""
LINE_SECONDS = 15.0
"""Time between two plain lines."""


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that is called with the number of things just done, out of `total`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(what, total=total)
    done, next_line = 0, time.monotonic() + QUIET_SECONDS

    def advance(count: int) -> None:
        nonlocal done, next_line
        done += count
        bar.advance(task, count)
        if time.monotonic() < next_line:
            return
        if bar.console.is_terminal:
            bar.start()
            next_line = float("inf")
        else:
            sys.stderr.write(f"{what}: {done:,} of {total:,}\n")
            next_line = time.monotonic() + LINE_SECONDS

    try:
        yield advance
    finally:
        bar.stop()
