"""Stop requests (Ctrl-C, SIGTERM) that cannot get lost.

A signal becomes a `KeyboardInterrupt` wherever the main thread happens to be. In a callback of the interpreter (of a
weak reference, a finalizer) it is swallowed with a traceback on the terminal: there it comes again a moment later, and
nothing is printed. In an import or a callback of a library it may be swallowed as well: so it is also remembered, and
asked for before anything long starts.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bdray.processes import interrupt_main_thread

_asked, _patient = threading.Event(), threading.Event()

DRIVER = "BDRAY_DRIVER"
"""Environment variable of a driver that its supervisor has started (`supervisor`), until it begins its work."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_S = 0.05


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
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda swallowed: _again(swallowed) or unraisable(swallowed)
    try:
        # A supervisor's driver begins with them blocked (`supervisor`).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        yield
    finally:
        sys.unraisablehook = unraisable
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


def _again(swallowed: sys.UnraisableHookArgs) -> bool:
    """Whether it is a stop request that could not be raised where it came; then it is made once more."""
    if not isinstance(swallowed.exc_value, KeyboardInterrupt):
        return False
    again = threading.Timer(_AGAIN_S, interrupt_main_thread)
    again.daemon = True
    again.start()
    return True
