"""Candidates in processes of their own, where what one sets for its whole process cannot help or harm another."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

Maker = tuple[Callable[..., Callable[[], float]], tuple[Any, ...]]
"""A function of a module, and its arguments. It is called in the candidate's process and returns the candidate."""


@contextmanager
def apart(makers: Mapping[str, Maker]) -> Iterator[dict[str, Callable[[], float]]]:
    """One process a candidate, by name; each sleeps until it is asked for a figure."""
    with ExitStack() as processes:
        yield {name: processes.enter_context(_process(*maker)) for name, maker in makers.items()}


@contextmanager
def _process(make: Callable[..., Callable[[], float]], arguments: tuple[Any, ...]) -> Iterator[Callable[[], float]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make, arguments))
    process.start()
    theirs.close()

    def candidate() -> float:
        ours.send("go")
        figure: float = ours.recv()
        return figure

    try:
        yield candidate
    finally:
        ours.close()
        process.join()


def _serve(asked: Connection, make: Callable[..., Callable[[], float]], arguments: tuple[Any, ...]) -> None:
    candidate = make(*arguments)
    while True:
        try:
            asked.recv()
        except EOFError:
            return
        asked.send(candidate())
