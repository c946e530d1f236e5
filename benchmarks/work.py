"""Tasks of known length, for `ClusterJob.work`: what the runner costs shows only when the work is known."""

from __future__ import annotations

import json
import time

from bdray.cluster.job import ClusterJob, Task

CPU_SECONDS = "cpu_seconds"
"""Folder of one file a trial: the CPU time it got."""


def nothing(job: ClusterJob, task: Task) -> str:
    """A trial that does nothing."""
    return "finished"


def compute(job: ClusterJob, task: Task) -> str:
    """Compute for `condition.seconds` by the clock, as a training of that length; note how much of a core it got.

    A process first imports what a real trial needs, and that counts as overhead.
    """
    import bdray.trial.run  # noqa: F401

    condition = json.loads(task.content)
    until, before = time.perf_counter() + condition["seconds"], time.thread_time()
    while time.perf_counter() < until:
        sum(range(10_000))
    got = time.thread_time() - before
    job.sweep.child(CPU_SECONDS).write_atomic(condition["name"], str(got))
    return "finished"
