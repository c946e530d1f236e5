"""Interrupts what the main thread does, from another thread."""

from __future__ import annotations

import signal
import threading


def interrupt_main_thread() -> None:
    """As Ctrl-C does. Unlike `_thread.interrupt_main`, it also wakes a main thread that sleeps or waits."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)
