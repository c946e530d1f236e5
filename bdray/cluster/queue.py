"""Which task may start: no two tasks ever compute the same stage, or ask a model the same, at the same time."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from bdray.cluster.job import Task


class StageQueue:
    """Tasks in order, of which those are held back that would compute what another one is about to compute.

    The first task that needs a stage leads it. The others that need it are held, without a process or a CPU, until the
    stage is in the storage; or until the leader is gone without it, then the next one leads.

    Args:
        tasks: in the order they should start.
        stage_finished: whether the storage holds the stage with this fingerprint, or the answer of this name.
        poll_seconds: the storage is asked for stages whose leaders still run at most this often.
    """

    def __init__(
        self, tasks: Sequence[Task], stage_finished: Callable[[str], bool], *, poll_seconds: float = 0.0
    ) -> None:
        self._stage_finished, self._poll_seconds = stage_finished, poll_seconds
        self._polled = -math.inf
        self._finished: set[str] = set()
        self._leader: dict[str, str] = {}
        self._held: dict[str, list[Task]] = {}
        self._ready: deque[Task] = deque()
        self.add(tasks)

    def add(self, tasks: Sequence[Task]) -> None:
        """More tasks, after all there are."""
        for task in tasks:
            self._admit(task)

    def pop(self) -> Task | None:
        """The next task that may start, or None when all that are left are held."""
        if not self._ready and self._held and time.monotonic() - self._polled >= self._poll_seconds:
            self._polled = time.monotonic()
            for stage in [stage for stage in self._held if self._is_finished(stage)]:
                self._release(stage)
        return self._ready.popleft() if self._ready else None

    def put_back(self, task: Task, *, last: bool = False) -> None:
        """A task that was popped starts once more, before all others (or after all that are ready); it still leads what
        it led."""
        if last:
            self._ready.append(task)
        else:
            self._ready.appendleft(task)

    def ended(self, task: Task) -> None:
        """A task is gone: those it led need not wait for it any longer. What has no answer then may have none."""
        self._finished.update(answer for answer in task.answers if self._leader.get(answer) == task.condition_id)
        for stage in task.shared:
            if self._leader.get(stage) == task.condition_id:
                del self._leader[stage]
                if stage in self._held:
                    self._is_finished(stage)
                    self._release(stage)

    @property
    def empty(self) -> bool:
        """Nothing ready and nothing held."""
        return not self._ready and not self._held

    def _admit(self, task: Task) -> bool:
        """Make a task ready, or hold it where somebody else leads what it needs. Returns whether it is ready."""
        for stage in task.shared:
            if stage not in self._finished and stage in self._leader:
                self._held.setdefault(stage, []).append(task)
                return False
        self._leader.update((stage, task.condition_id) for stage in task.shared if stage not in self._finished)
        self._ready.append(task)
        return True

    def _release(self, stage: str) -> None:
        """What was held for a stage starts next, before tasks that need another."""
        before = len(self._ready)
        for task in self._held.pop(stage, []):
            self._admit(task)
        self._ready.rotate(len(self._ready) - before)

    def _is_finished(self, stage: str) -> bool:
        if stage not in self._finished and self._stage_finished(stage):
            self._finished.add(stage)
        return stage in self._finished
