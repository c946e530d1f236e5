"""Tasks of known length, for `ClusterJob.work`: what the runner costs shows only when the work is known."""

from __future__ import annotations

import time
from typing import Any


def nothing(job: dict[str, Any], task: dict[str, Any]) -> str:
    """A trial that does nothing."""
    return "finished"


def compute(job: dict[str, Any], task: dict[str, Any]) -> str:
    """Keep one core busy for `condition.seconds` of its own time.

    CPU time, not wall time: whatever takes the core away meanwhile makes the trial longer, as it would a training.
    A process first imports what a real trial needs, and that counts as overhead.
    """
    import bdray.trial  # noqa: F401

    until = time.thread_time() + task["condition"]["seconds"]
    while time.thread_time() < until:
        sum(range(10_000))
    return "finished"
