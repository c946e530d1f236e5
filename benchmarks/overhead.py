"""What the runner adds to a trial: many trials that do nothing, and whether more of them cost more each."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings, Task
from bdray.condition import Condition, digest
from bdray.store.storage import Storage
from benchmarks.measure import Report, Row, Target, progress

SLOTS = 2


def measure(*, quick: bool = False) -> Report:
    """1,000, 10,000 and again 1,000 trials that do nothing, through the real runner, on one Ray."""
    few, many = (20, 60) if quick else (1_000, 10_000)
    with ClusterRun(ClusterSettings(num_cpus=SLOTS, dashboard=not quick)) as cluster:
        run_nothing(cluster, 10)
        before, after = 0.0, 0.0
        before = run_nothing(cluster, few) / few
        seconds = run_nothing(cluster, many) / many
        after = run_nothing(cluster, few) / few
    small = (before + after) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Report(
        "Overhead: trials that do nothing",
        "ratio",
        [
            Row(f"{few:,} trials, before", {"s a trial": before}),
            Row(f"{many:,} trials", {"s a trial": seconds}),
            Row(f"{few:,} trials, after", {"s a trial": after}),
            Row(f"{many:,} against {few:,} (mean of before and after)", {}, seconds / small, Target("under", 1.2)),
            Row(f"{many:,} trials, seconds each", {}, seconds, Target("under", 0.25)),
            Row("driver's peak resident memory, GiB", {}, peak, Target("under", 2.0)),
        ],
        [f"{SLOTS} slots; seconds a trial = wall time of the run / trials."],
    )


def run_nothing(cluster: ClusterRun, count: int) -> float:
    """Seconds that `count` trials took."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.open(folder)
        job = ClusterJob(
            storage.child("sweep"),
            storage,
            [_task(number) for number in range(count)],
            sys_path=(str(Path(__file__).parent.parent),),
            work="benchmarks.work:nothing",
        )
        watch = Counting(count)
        started = time.perf_counter()
        finished = cluster.run(job, watch)
        seconds = time.perf_counter() - started
    assert finished and watch.done == count, f"{watch.done} of {count} trials finished"
    return seconds


class Counting:
    """Counts what ends, and says so now and then.

    Attributes:
        first_ended: when the first one did, on `time.perf_counter`.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.first_ended: float | None = None
        self._started = time.perf_counter()

    def started(self, condition_id: str) -> None:
        """Nothing is known yet."""

    def ended(self, condition_id: str, status: str) -> None:
        self.done += 1
        self.first_ended = self.first_ended or time.perf_counter()
        if self.done % max(1, self.total // 10) == 0 or self.done == self.total:
            seconds = time.perf_counter() - self._started
            progress(f"  {self.done:,}/{self.total:,} trials, {seconds:.1f} s, {seconds / self.done:.4f} s each")

    def restarts(self, condition_id: str, cause: str) -> None:
        """Not counted: it is still running."""

    def lost(self, condition_id: str, cause: str, detail: str) -> None:
        raise RuntimeError(f"trial {condition_id} was lost: {cause}")


def _task(number: int) -> Task:
    """As large as a real one: the content is a whole condition."""
    content = {**_CONTENT, "seed": number}
    return Task(digest(content), json.dumps(content), stages=(digest({"stage": number}),))


_CONTENT = Condition.parse(
    {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "trigger": {"name": "patch"}}
).content()
