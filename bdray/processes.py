"""Processes and their main threads: whether one is still there, and interrupting one."""

from __future__ import annotations

import signal
import threading

import psutil


def is_alive(process: psutil.Process | int) -> bool:
    """Whether a process runs. One that has ended but that its parent has not asked about is gone: where no parent does
    (many containers have no init), such zombies stay for ever.

    Args:
        process: or its number.
    """
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return bool(found.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def interrupt_main_thread() -> None:
    """As Ctrl-C does, from another thread. Unlike `_thread.interrupt_main`, it also wakes a main thread that sleeps or
    waits."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)
