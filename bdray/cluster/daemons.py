"""What Ray does with processes: its own are noticed when they are lost and silent when they are not, and one that its
memory monitor kills is lost like any other."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from bdray.processes import is_alive

_VITAL = {"raylet": "Ray's raylet", "gcs_server": "Ray's GCS"}
"""By the names of their programs. When one is lost, Ray ends the process connected to it, up to a minute later, without
a word to Python."""

_LOOK_S = 0.25


@contextmanager
def daemons_watched(lost: Callable[[str], None]) -> Iterator[None]:
    """Within this block `lost` is called, from a thread, when a vital daemon that this process has started is gone."""
    children = psutil.Process().children()
    vital = {process: _VITAL[name] for process in children if (name := _name(process)) in _VITAL}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            for process, what in vital.items():
                if not is_alive(process):
                    # Unless it was this process that ended it.
                    if not over.is_set():
                        lost(f"{what} has ended")
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def stderr_in(log: Path | None) -> Iterator[None]:
    """Within this block what is written to stderr goes to a file, but for what bdray logs.

    Ray writes a page there, from C++ and from threads, for each process it loses.

    Args:
        log: written to at the end; None: nothing is kept.
    """
    own = os.fdopen(os.dup(2), "w", buffering=1)
    logger, handler = logging.getLogger("bdray"), logging.StreamHandler(own)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with open(log or os.devnull, "ab") as file:  # noqa: PTH123 - a path or the null device
        os.dup2(file.fileno(), 2)
    is_new = not logger.hasHandlers()
    if is_new:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        os.dup2(own.fileno(), 2)
        own.close()
        if log is not None and not log.stat().st_size:
            log.unlink()


@contextmanager
def memory_kills_as_actor_errors() -> Iterator[None]:
    """Within this block Tune takes an `OutOfMemoryError` for the end of an actor.

    Tune 2.60 knows errors of actors and of tasks only: this one, which is neither, ends the whole run.
    `tests/cluster/test_memory.py` notices a version that does otherwise.
    """
    handle = RayActorManager._actor_task_failed

    def failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        handle(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = handle


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
