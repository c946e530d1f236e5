"""Stop requests (Ctrl-C, SIGTERM) that cannot get lost.

A signal becomes a `KeyboardInterrupt` wherever the main thread happens to be; in an import or a callback of a library
it may be swallowed there. So it is also remembered, and asked for before anything long starts.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked, _patient = threading.Event(), threading.Event()

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def from_the_start() -> None:
    """To be called before the imports that take seconds: until `listening`, a stop request ends the process as such."""
    for number in _SIGNALS:
        signal.signal(number, _stop_at_once)


def no_more() -> None:
    """Everything is done, and said: a stop request could only change the exit status into a wrong one."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def listening() -> Iterator[None]:
    """Within this block SIGINT and SIGTERM raise `KeyboardInterrupt` and are remembered."""
    _asked.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _ask) for number in _SIGNALS}
    try:
        # A keeper's driver begins with them blocked (`keeper`).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def patiently() -> Iterator[None]:
    """Within this block the first request is only remembered (see `asked`): the second one raises."""
    _patient.set()
    try:
        yield
    finally:
        _patient.clear()


def asked() -> bool:
    """Whether a stop was asked for."""
    return _asked.is_set()


def check() -> None:
    """Raises `KeyboardInterrupt` when a stop was asked for and has not ended the command yet."""
    if _asked.is_set():
        raise KeyboardInterrupt


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted before anything was done; continue with the same command\n")
    os._exit(130)


def _ask(number: int, frame: FrameType | None) -> None:
    may_wait = _patient.is_set() and not _asked.is_set()
    _asked.set()
    if not may_wait:
        raise KeyboardInterrupt
