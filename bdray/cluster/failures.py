"""Conditions whose process was lost: they go on, unless they lose it again and again without getting anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, cast

from bdray.errors import StorageError
from bdray.gpu_errors import gpu_error

MAX_LOST_WITHOUT_PROGRESS = 3
"""A loss of a process is the infrastructure's fault, whatever the process was doing; a condition that loses this many
in a row without one more epoch in between may be what kills them."""

MAX_LOST_UNREAD = 10
"""So many losses may pass of which it is not known how far the condition had come, as while a store is away: then a
trial ends for that, after most of a minute of trying."""


@dataclass
class LostProcesses:
    """How often conditions have lost their processes.

    Attributes:
        progress: how far a condition has come, as a number that grows with every epoch it had not finished before.
    """

    progress: Callable[[str], int]
    _unread: dict[str, int] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)
    _reached: dict[str, int] = field(default_factory=dict)

    def start_again(self, condition_id: str) -> bool:
        """A condition has just lost its process: whether it is started again."""
        try:
            reached = self.progress(condition_id)
        except StorageError:
            self._unread[condition_id] = self._unread.get(condition_id, 0) + 1
            return self._unread[condition_id] < MAX_LOST_UNREAD
        is_stuck = reached <= self._reached.get(condition_id, -1)
        self._reached[condition_id] = reached
        self._count[condition_id] = self._count.get(condition_id, 0) + 1 if is_stuck else 1
        return self._count[condition_id] < MAX_LOST_WITHOUT_PROGRESS


def memory_exhausted(said: str) -> str:
    """What a process needed of its machine's memory when Ray killed it for that; "" where that was not the cause.

    Of several that were killed at once, what the smallest needed.
    """
    found = re.search(r"Memory on the node .*? was ([\d.]+)GB used / ([\d.]+)GB limit", said)
    if found is None:
        return ""
    used, machine = float(found[1]), f"a machine of {found[2]} GB"
    own = [float(each) for each in re.findall(r"Selected to kill: .*?actual memory used=([\d.]+)GB", said)]
    if not own:
        return f"it needs more memory than was left on {machine}, {found[1]} GB of which were used"
    return f"it needs more than {min(own):g} GB on {machine}, {max(0.0, used - sum(own)):.2f} GB of which others used"


def gpu_memory_exhausted(said: str) -> str:
    """What torch says where the memory of a trial's share of a GPU was not enough; "" where that was not the cause."""
    found = gpu_error(said)
    return f"the memory of its share of a GPU ran out: {found.said}" if found and found.kind == "memory" else ""


def unlike_node(said: str) -> tuple[str, str] | None:
    """The id of the node and what is wrong with it, where a process ended because its node is not alike."""
    found = re.search(r"UnlikeNodeError: node ([0-9a-f]+) is not alike: ([^\n]*)", said)
    return (found[1], found[2].strip()) if found else None


UNFIT: Final = "does not work"
ERROR: Final = "gave an error"
Verdict = Literal["does not work", "gave an error"]


@dataclass(frozen=True)
class GpuFailure:
    """A process that ended because of its GPU.

    Attributes:
        gpu: names the card by Ray's number of it on its node: that is known also where CUDA answers nothing.
        group: id of the placement group that holds the process's share of it.
        verdict: `UNFIT`: it was never usable for this process; `ERROR`: it failed while the condition ran.
        problem: what was wrong, in a few words, with the card's UUID where CUDA told it.
    """

    gpu: str
    group: str
    verdict: Verdict
    problem: str

    def __str__(self) -> str:
        return f"{self.gpu} {self.verdict}: {self.problem}"


def gpu_failure(said: str) -> GpuFailure | None:
    """The GPU whose fault it is that a process ended, by what Ray says of it."""
    found = re.search(rf"GpuLostError: \[(\w+)\] (.+?) ({UNFIT}|{ERROR}): ([^\n]*)", said)
    # The pattern has no other verdicts.
    return GpuFailure(found[2], found[1], cast("Verdict", found[3]), found[4].strip()) if found else None


def in_one_line(said: str) -> str:
    """What Ray says of a lost process, in a few words: its exit code or signal where it knows one."""
    if memory := memory_exhausted(said) or gpu_memory_exhausted(said):
        return memory
    if unlike := unlike_node(said):
        return f"its node {unlike[0][:6]} is not alike"
    if loss := gpu_failure(said):
        return str(loss)
    detail = re.search(r"Worker exit detail: ([^.\n]*)", said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return detail[1].strip() if detail else (lines[-1][:200] if lines else "nothing is known of its end")
