"""What a search costs its driver: CPU time an ask, by how much is known, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bdray.cluster.job import ClusterJob, ClusterSettings, Task
from bdray.condition import Condition
from bdray.searches import Asker
from bdray.space import load_space
from bdray.store.storage import Storage
from benchmarks.measure import Report, Row, Target, progress
from benchmarks.overhead import Counting
from benchmarks.searching import made_up

CELLS, DRIVER, LIMIT = 2_000, "driver", Target("under", 1.0)
SAMPLERS = ("random", "qmc", "nsgaii", "tpe")
PARAMETERS: Mapping[str, Any] = {
    "poison.rate": {"min": 0.001, "max": 0.3, "distribution": "log_uniform"},
    "train.lr": {"min": 0.01, "max": 0.5, "distribution": "log_uniform"},
    "trigger.size": {"values": [1, 2, 3]},
}


def measure(*, quick: bool = False) -> Report:
    """Each sampler asked for 2,000 cells one by one, each told at once, in a process of its own."""
    cells = 60 if quick else CELLS
    rows = []
    for sampler in SAMPLERS:
        found = _in_a_process(sampler, cells)
        progress(f"  {sampler}: {found['ms']}, {found['peak_mib']:.0f} MiB")
        first, last = found["ms"][1], found["ms"][-1]
        figures = {
            f"ms an ask, {cells // 20:,} known": first,
            f"{cells // 2:,} known": found["ms"][len(found["ms"]) // 2],
            f"{cells:,} known": last,
            "of it tell": found["tell_ms"],
            "peak memory, GiB": found["peak_mib"] / 1024,
        }
        rows.append(Row(sampler, figures, last / first, Target("under", 1.5)))
    driver = _in_a_process(DRIVER, cells)
    rows.append(
        Row("driver with Ray, tpe", {"peak memory, GiB": driver["peak_mib"] / 1024}, driver["peak_mib"] / 1024, LIMIT)
    )
    return Report(
        f"Asking for {cells:,} cells",
        "last / first",
        rows,
        [
            f"CPU time of an ask with its tell, means over {max(1, cells // 20)} cells, the study in memory;"
            " three axes, one seed. First: after the 5 % that are asked before anything is learnt. Memory: the"
            " peak of a process that holds space, search and study; in the last row also Ray's driver, whose trials do"
            " nothing, and whose ratio is GiB."
        ],
    )


def _in_a_process(sampler: str, cells: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.asking", sampler, str(cells)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ask(sampler: str, cells: int) -> dict[str, Any]:
    """Means of twentieths of the cells, ms, and the peak resident memory, MiB."""
    each, telling = list[float](), 0.0
    with _begun(sampler, cells) as asker:
        while not asker.finished:
            before = time.process_time()
            conditions = asker.ask(1)
            asked = time.process_time()
            records = [made_up(condition) for condition in conditions]
            told = time.process_time()
            for record in records:
                asker.tell(record)
            telling += time.process_time() - told
            each.append(asked - before + time.process_time() - told)
    part = max(1, cells // 20)
    means = [1000 * sum(each[at : at + part]) / part for at in range(0, len(each) - part + 1, part)]
    return {"ms": [round(mean, 1) for mean in means], "tell_ms": 1000 * telling / len(each), "peak_mib": _peak_mib()}


def drive(cells: int) -> dict[str, Any]:
    """The same through Ray, with trials that do nothing: the peak resident memory of the driver, MiB."""
    from bdray.cluster import ClusterRun

    with (
        tempfile.TemporaryDirectory() as folder,
        _begun("tpe", cells) as asker,
        ClusterRun(ClusterSettings(num_cpus=2, dashboard=False)) as cluster,
    ):
        storage, search_loop = Storage.open(folder), _Course(asker, cells)
        root = str(Path(__file__).parent.parent)
        job = ClusterJob(storage.child("sweep"), storage, (), sys_path=(root,), work="benchmarks.work:nothing")
        assert cluster.run(job, search_loop, search_loop)
    assert search_loop.done == cells
    return {"peak_mib": _peak_mib()}


class _Course(Counting):
    """Asks, and tells what a formula gives: `Source` and `Observer` of the cluster."""

    def __init__(self, asker: Asker, total: int) -> None:
        super().__init__(total)
        self._asker, self._running = asker, dict[str, Condition]()

    def more(self) -> list[Task]:
        asked = self._asker.ask(1) if not self.exhausted else ()
        self._running |= {condition.condition_id: condition for condition in asked}
        return [Task(c.condition_id, json.dumps(c.content()), (c.poison_fingerprint,)) for c in asked]

    @property
    def exhausted(self) -> bool:
        return self._asker.finished

    def ended(self, condition_id: str, status: str) -> None:
        super().ended(condition_id, status)
        self._asker.tell(made_up(self._running.pop(condition_id)))


@contextmanager
def _begun(sampler: str, cells: int) -> Iterator[Asker]:
    """A search in a folder of its own."""
    content = {
        "seeds": [0],
        "fixed": {"data": "digits", "model": "resnet8", "trigger": "patch"},
        "parameters": dict(PARAMETERS),
        "search": {"method": "optuna", "sampler": sampler, "max_trials": cells},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "space.yaml")
        path.write_text(yaml.safe_dump(content))
        yield load_space(path).start(Storage.open(folder).child("sweep"), [])


def _peak_mib() -> float:
    """Since this program began; what `getrusage` says holds the peak of the process it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    what, count = sys.argv[1], int(sys.argv[2])
    print(json.dumps(drive(count) if what == DRIVER else ask(what, count)))
