"""Memory of four trials at once on one data set, against one alone."""

from __future__ import annotations

import importlib
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings, Task
from bdray.cluster.job import PROCESS_NAME
from bdray.condition import Condition
from bdray.store.storage import Storage
from benchmarks.measure import Report, Row, Target, progress
from benchmarks.overhead import Counting
from benchmarks.pictures import SYNTHETIC

SAMPLE_SECONDS = 0.2
TARGET = Target("under", 1.3)
AT_ONCE = 4


def measure(*, quick: bool = False) -> Report:
    """Peak memory of the worker processes of 1 and of 4 concurrent trials, on Ray."""
    images = 500 if quick else 50_000
    with tempfile.TemporaryDirectory() as folder:
        grid = [condition(seed, images) for seed in range(AT_ONCE)]
        grid[0].data.load(Path(folder, "cache"))
        one = peak(grid[:1], Path(folder))
        progress(f"  1 trial: {one}")
        four = peak(grid, Path(folder))
        progress(f"  {AT_ONCE} trials: {four}")
    need = AT_ONCE * one.own + one.data
    floor = need / one.total
    return Report(
        f"Memory of {AT_ONCE} trials at once on one data set (resnet8, {images + images // 5:,} images 32 x 32)",
        "ratio",
        [
            Row("1 trial", one.figures()),
            Row(f"{AT_ONCE} trials at once", four.figures()),
            Row(f"{AT_ONCE} trials / ({AT_ONCE} x one trial's own + the data set once)", {}, four.total / need, TARGET),
            Row(f"{AT_ONCE} trials / 1 trial", {}, four.total / one.total),
        ],
        [
            "Proportional set size, which counts a page shared by n processes as 1/n in each, summed over the trials'"
            " worker processes; the sample with the highest sum. 'Data set': the pages of the mapped arrays, by the"
            " kernel's account of each mapping. 'Own': all the rest (interpreter, torch, model, activations).",
            "The target is read as: four trials need four times what one needs for itself, and the data set"
            " once. Read as four trials against one in all, no system with a process a trial can do better than"
            f" {floor:.2f} here, since all but the data set is needed by each.",
        ],
    )


@dataclass(frozen=True)
class Memory:
    """Proportional set size of some processes, in bytes: in all, and of it the mapped data set."""

    total: int = 0
    data: int = 0

    @property
    def own(self) -> int:
        return self.total - self.data

    def figures(self) -> dict[str, float]:
        """In MiB."""
        return {f"{name}, MiB": getattr(self, field) / 2**20 for name, field in _COLUMNS.items()}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.0f}" for name, value in self.figures().items())


_COLUMNS = {"in all": "total", "data set": "data", "own": "own"}


def condition(seed: int, images: int) -> Condition:
    """One epoch over every image: what trials that run longer need, too."""
    importlib.import_module(SYNTHETIC)
    return Condition.parse(
        {
            "data": {"name": "synthetic", "train_images": images, "test_images": images // 5, "clean_pool": 0.0},
            "model": {"name": "resnet8"},
            "trigger": {"name": "patch"},
            "poison": {"rate": 0.01},
            "train": {"epochs": 1},
            "finetune": {"epochs": 0},
            "seed": seed,
        }
    )


def peak(grid: list[Condition], folder: Path) -> Memory:
    """Run the conditions at once; the highest memory their processes had together."""
    sweep = Storage.open(folder / f"sweep{len(grid)}")
    tasks = [Task(c.condition_id, json.dumps(c.content()), (c.poison_fingerprint,)) for c in grid]
    job = ClusterJob(
        sweep,
        sweep,
        tasks,
        plugins=(SYNTHETIC,),
        trial_options={"cache": folder / "cache"},
        sys_path=(str(Path(__file__).parent.parent),),
    )
    watch = Counting(len(grid))
    with ClusterRun(ClusterSettings(num_cpus=len(grid), dashboard=False)) as cluster, sampled() as samples:
        assert cluster.run(job, watch) and watch.done == len(grid)
    highest = max(samples, key=lambda memory: memory.total)
    assert highest.total, "no process of a trial was seen"
    return highest


@contextmanager
def sampled() -> Iterator[list[Memory]]:
    """Samples of the memory of all trials' processes below this one, taken while the block runs."""
    samples, over = [Memory()], threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            samples.append(_together(_trial_processes()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _trial_processes() -> list[psutil.Process]:
    """The trials' worker processes: Ray titles them after what they run."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if _title(process).startswith(f"ray::{PROCESS_NAME}")]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _together(processes: list[psutil.Process]) -> Memory:
    total = data = 0
    for process in processes:
        try:
            maps = process.memory_maps(grouped=True)
        except psutil.Error:
            continue
        total += sum(region.pss for region in maps)
        data += sum(region.pss for region in maps if region.path.endswith(".npy"))
    return Memory(total, data)
