"""Tasks of known length, for `ClusterJob.work`: what the runner costs shows only when the work is known."""

from __future__ import annotations

import time
from typing import Any

from bdray.store.storage import Storage

CPU_SECONDS = "cpu_seconds"
"""Folder of one file a trial: the CPU time it got."""


def nothing(job: dict[str, Any], task: dict[str, Any]) -> str:
    """A trial that does nothing."""
    return "finished"


def compute(job: dict[str, Any], task: dict[str, Any]) -> str:
    """Compute for `condition.seconds` by the clock, as a training of that length; note how much of a core it got.

    A process first imports what a real trial needs, and that counts as overhead.
    """
    import bdray.trial.run  # noqa: F401

    until, before = time.perf_counter() + task["condition"]["seconds"], time.thread_time()
    while time.perf_counter() < until:
        sum(range(10_000))
    got = time.thread_time() - before
    Storage.open(job["sweep"]).child(CPU_SECONDS).write_atomic(task["condition"]["name"], str(got))
    return "finished"
