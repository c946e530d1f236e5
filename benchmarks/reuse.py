"""What forking many fine-tunings from one poisoned model saves."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings, Task
from bdray.condition import Condition
from bdray.record import StageName, TrialRecord
from bdray.store.records import read_records
from bdray.store.storage import Storage
from bdray.trial import TrialOptions, run_trial
from benchmarks.measure import Report, Row, Target, progress
from benchmarks.overhead import SLOTS, Counting

TARGET = Target("under", 1.1)


def measure(*, quick: bool = False) -> Report:
    """One poison stage x 20 fine-tunings: with one storage, and with a storage each; in this process and on Ray."""
    grid = conditions(2, 1, 1, images=200) if quick else conditions(20, 6, 3)
    with tempfile.TemporaryDirectory() as folder:
        options = TrialOptions(cache=Path(folder, "cache"))
        run_trial(grid[0], options=options)
        shared, together = in_process(grid, Storage.open(Path(folder, "shared")), options)
        progress(f"  in this process, one storage: {together:.1f} s")
        apart_seconds = 0.0
        apart: list[TrialRecord] = []
        for number, condition in enumerate(grid):
            records, seconds = in_process([condition], Storage.open(Path(folder, f"apart{number}")), options)
            apart += records
            apart_seconds += seconds
        progress(f"  in this process, a storage each: {apart_seconds:.1f} s")
        rows = [
            _row("in one process, one storage", together, shared),
            _row("in one process, a storage each", apart_seconds, apart, judged=False),
        ]
        if not quick:
            rows.append(on_ray(conditions(20, 20, 25), Path(folder)))
    assert [r.repaired for r in shared] == [r.repaired for r in apart], "a forked stage must give the same numbers"
    return Report(
        f"Stage reuse: 1 poison stage x {len(grid)} fine-tunings (resnet8 on digits)",
        "total / ideal",
        rows,
        [
            "Ideal: one poison stage + all fine-tunings, each stage's seconds (training and evaluation) as its"
            f" own record says, over the slots (1 in one process, {SLOTS} on Ray). Total: wall time of"
            " everything, loading of data, writing of files, pictures and records included; on Ray without Ray's"
            " own start, with its processes'. The poison stage leads alone, so on Ray one slot waits for it:"
            " that is part of its ideal.",
        ],
    )


def conditions(count: int, epochs: int, finetune_epochs: int, images: int | None = None) -> list[Condition]:
    """Conditions that differ only in the learning rate of their fine-tuning."""
    base = {
        "data": {"name": "digits", "train_limit": images, "test_limit": images},
        "model": {"name": "resnet8"},
        "trigger": {"name": "patch"},
        "poison": {"rate": 0.1},
        "train": {"epochs": epochs, "batch_size": 64},
    }
    tunings = [{"epochs": finetune_epochs, "batch_size": 64, "lr": 0.001 * (n + 1)} for n in range(count)]
    return [Condition.parse({**base, "finetune": tuning}) for tuning in tunings]


def in_process(grid: Sequence[Condition], sweep: Storage, options: TrialOptions) -> tuple[list[TrialRecord], float]:
    """Run one after the other; records and seconds."""
    started = time.perf_counter()
    records = [run_trial(condition, sweep=sweep, options=options) for condition in grid]
    return records, time.perf_counter() - started


def on_ray(grid: Sequence[Condition], folder: Path) -> Row:
    """As a sweep on a Ray that is up. The stages are longer, as its processes take seconds to start."""
    with ClusterRun(ClusterSettings(num_cpus=SLOTS)) as cluster:
        sweep = Storage.open(folder / "ray").child("sweep")
        seconds = run_grid(cluster, grid, sweep, folder)
        records = read_records(sweep)
    poison = stage_seconds(records, "poison")[:1]
    ideal = sum(poison) + sum(stage_seconds(records, "finetune")) / SLOTS
    figures = {"total, s": seconds, "ideal, s": ideal}
    return Row(f"on Ray, {SLOTS} slots, one storage, longer stages", figures, seconds / ideal, TARGET)


def run_grid(cluster: ClusterRun, grid: Sequence[Condition], sweep: Storage, folder: Path) -> float:
    """Seconds the grid takes on Ray."""
    tasks = [Task(c.condition_id, json.dumps(c.content()), (c.poison_fingerprint,)) for c in grid]
    job = ClusterJob(sweep, sweep, tasks, trial_options={"cache": folder / "cache"})
    watch = Counting(len(grid))
    started = time.perf_counter()
    assert cluster.run(job, watch) and watch.done == len(grid)
    return time.perf_counter() - started


def stage_seconds(records: Sequence[TrialRecord], name: StageName) -> list[float]:
    """Seconds of the stage of this name in every record, training and evaluation."""
    stages = [record.stage(name) for record in records]
    return [stage.last.stage_seconds for stage in stages if stage is not None and stage.last is not None]


def _row(name: str, total: float, records: Sequence[TrialRecord], *, judged: bool = True) -> Row:
    poison, tuning = stage_seconds(records, "poison"), stage_seconds(records, "finetune")
    ideal = sum(poison) / len(poison) + sum(tuning)
    figures = {"total, s": total, "ideal, s": ideal}
    return Row(name, figures, total / ideal, TARGET if judged else None)
