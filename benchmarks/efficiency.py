"""How much of what a machine could train a sweep of short trials leaves unused."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings, Task
from bdray.store.storage import Storage
from benchmarks.measure import Report, Row, Target, progress
from benchmarks.overhead import SLOTS, Counting
from benchmarks.work import CPU_SECONDS

TRIALS = 64
TARGETS = {10.0: Target("at least", 0.95), 1.0: Target("at least", 0.75)}


def measure(*, quick: bool = False) -> Report:
    """64 trials of 10 s and of 1 s, each on a Ray of its own, started and ended with it."""
    sizes = {0.2: Target("at least", 0.0)} if quick else TARGETS
    trials = 4 if quick else TRIALS
    rows = [one_length(seconds, trials, target, dashboard=not quick) for seconds, target in sizes.items()]
    return Report(
        f"Sweep efficiency: {trials} trials on {SLOTS} slots",
        "efficiency",
        rows,
        [
            "Efficiency = trials x seconds / (slots x wall). A trial computes for so many seconds by the clock. Wall:"
            " from before Ray starts until it has ended. First trial after: from when Ray is up until the first trial"
            " computes; its process starts and imports Ray Tune and torch, as the other slot's does beside it. Without"
            " them: wall of the run alone, which holds that wait. Of a core: the CPU time trials got in their seconds;"
            " the rest went to Ray's own processes (its dashboard's, most of all) and to whatever else ran.",
        ],
    )


def one_length(seconds: float, trials: int, target: Target, *, dashboard: bool) -> Row:
    """The row of trials of one length."""
    progress(f"{trials} trials of {seconds:g} s")
    work = trials * seconds / SLOTS
    started = time.perf_counter()
    with ClusterRun(ClusterSettings(num_cpus=SLOTS, dashboard=dashboard)) as cluster:
        up = time.perf_counter()
        got, first_ended = run_busy(cluster, seconds, trials)
        over = time.perf_counter()
    wall = time.perf_counter() - started
    figures = {
        "wall, s": wall,
        "of it Ray's start, s": up - started,
        "first trial after, s": first_ended - seconds - up,
        "Ray's end, s": wall - (over - started),
        "without them": work / (over - up),
        "of a core": got / (trials * seconds),
    }
    return Row(f"{seconds:g} s trials", figures, work / wall, target)


def run_busy(cluster: ClusterRun, seconds: float, trials: int) -> tuple[float, float]:
    """Run `trials` trials that compute for so many seconds each; the CPU seconds they got, and when the first ended."""
    names = [f"busy{number:08d}" for number in range(trials)]
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.open(folder)
        tasks = [Task(name, json.dumps({"name": name, "seconds": seconds}), (f"stage-{name}",)) for name in names]
        job = ClusterJob(
            storage.child("sweep"),
            storage,
            tasks,
            sys_path=(str(Path(__file__).parent.parent),),
            work="benchmarks.work:compute",
        )
        watch = Counting(trials)
        assert cluster.run(job, watch) and watch.done == trials, f"{watch.done} of {trials} trials finished"
        noted = storage.child("sweep", CPU_SECONDS)
        assert watch.first_ended is not None
        return sum(float(noted.read_text(name)) for name in names), watch.first_ended
