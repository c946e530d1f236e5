"""`bdray report --watch`: the page made again while sweeps run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bdray.commands.status import state_of
from bdray.store.storage import Storage

LOOK_S, LOOK_REMOTE_S = 2.0, 15.0
"""Between two looks at the records: on a disk, and where each is a request."""

_SPARED = 10.0
"""So many times as long as a page took to make nothing is made: the sweep has the processors."""


def follow(sweeps: Sequence[Storage], make: Callable[[bool], None]) -> None:
    """Call `make` whenever records of `sweeps` have changed, at least once and for the last time when none of them
    runs any more.

    Args:
        make: is told whether anything runs still.
    """
    every = LOOK_S if all(sweep.is_local for sweep in sweeps) else LOOK_REMOTE_S
    made: object = None
    spared_until = 0.0
    while True:
        states = [state_of(sweep) for sweep in sweeps]
        is_alive = any(state.is_alive for state in states)
        there = [(head.condition_id, head.status, head.finished_ms) for state in states for head in state.heads]
        begun = time.monotonic()
        if not is_alive or (there and there != made and begun >= spared_until):
            make(is_alive)
            made, took = there, time.monotonic() - begun
            spared_until = time.monotonic() + _SPARED * took
        if not is_alive:
            return
        time.sleep(every)
