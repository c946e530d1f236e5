"""What Ray's memory monitor kills is a lost process like any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError


@contextmanager
def memory_kills_are_losses() -> Iterator[None]:
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
