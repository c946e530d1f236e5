"""A sweep of 10,000 conditions over three nodes whose trials train nothing, killed at 90 % and started again.

Three raylets of one CPU each and a head without any, on loopback. The driver is the real one, in a process of its own,
with records, journals and MLflow (SQLite): only `ClusterJob.work` is another, which leaves the files of a trained
condition in the name of each.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray.cluster_utils import Cluster

from bdray.cluster.local_ray import loopback_only
from bdray.space import load_space
from bdray.store.storage import Storage
from benchmarks.finished_sweep import large_space, templates_of, write_templates
from benchmarks.measure import Report, Row, Target, progress

NODES = 3
KILLED_AT = 0.9
_DONE = re.compile(r"(\d+)/(\d+) conditions done, (\d+) running")
_DRIVE = "import sys; from benchmarks.nodes import drive; drive(*sys.argv[1:])"


def drive(folder: str, address: str) -> None:
    """The driver: `bdray sweep`, with another work."""
    from bdray.cluster import ClusterSettings
    from bdray.sweeping.run_sweep import run_sweep
    from bdray.sweeping.settings import SweepSettings
    from bdray.terminal import Console

    settings = SweepSettings(
        storage=f"{folder}/runs",
        cluster=ClusterSettings(address=address),
        work="benchmarks.finished_sweep:leave_record",
    )
    outcome = run_sweep(load_space(f"{folder}/space.yaml"), settings, Console())
    delivery = outcome.delivery
    print(f"missing {len(outcome.missing)}, delivery {delivery and delivery.error}", flush=True)


@dataclass
class Driven:
    """One command, as its lines and `/proc` tell it.

    Attributes:
        first_s: from its start to its first trial.
        done: conditions that were done at its start, and in the end.
        trials_s: from the first trial to the last one that ended.
        peak_bytes: most resident memory.
        delivering_s: from the last trial to the end.
    """

    first_s: float = 0.0
    done: tuple[int, int] = (0, 0)
    trials_s: float = 0.0
    peak_bytes: int = 0
    delivering_s: float = 0.0

    @property
    def trial_s(self) -> float:
        """Seconds a trial."""
        return self.trials_s / max(1, self.done[1] - self.done[0])


def run(folder: Path, address: str, *, until: float) -> Driven:
    """The command until this share of the conditions is done, then SIGKILL; 1: until it ends."""
    command = [sys.executable, "-u", "-c", _DRIVE, str(folder), address]
    with (folder / "said").open("a") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment())
    assert process.stdout is not None
    result, began, last = Driven(), time.monotonic(), time.monotonic()
    for line in process.stdout:
        found = _DONE.search(line)
        if found is None:
            progress(f"  {line.rstrip()}")
            continue
        done, total, running = (int(number) for number in found.groups())
        last = time.monotonic()
        if running and not result.first_s:
            result.first_s, result.done = last - began, (done, done)
        if result.first_s:
            result.done, result.trials_s = (result.done[0], done), last - began - result.first_s
        if done % 500 == 0:
            result.peak_bytes = max(result.peak_bytes, _peak(process.pid))
        if done >= until * total and until < 1:
            process.kill()
            break
        if done == total:
            result.peak_bytes = max(result.peak_bytes, _peak(process.pid))
    process.stdout.close()
    if process.wait() not in (0, -9):
        raise RuntimeError(f"the driver ended with {process.returncode}:\n{(folder / 'said').read_text()[-3000:]}")
    result.delivering_s = time.monotonic() - last
    return result


def _environment() -> dict[str, str]:
    known = filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known), "COLUMNS": "200"}


def _peak(pid: int) -> int:
    """Resident memory of a process at most so far, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Its address."""
    with loopback_only():
        nodes = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder / "ray")},
        )
        try:
            for _ in range(NODES):
                nodes.add_node(num_cpus=1)
            yield nodes.address
        finally:
            nodes.shutdown()


def delivered(folder: Path) -> int:
    """Conditions that MLflow has all of."""
    query = "select count(*) from tags where key = 'bdray.delivered'"
    with closing(sqlite3.connect(folder / "runs" / "mlflow.db")) as database:
        return int(database.execute(query).fetchone()[0])


def measure(*, quick: bool = False) -> Report:
    """The sweep, killed at 90 % and started again, until MLflow has everything."""
    # Nobody shares a poison stage: what waits for another is not what is measured.
    size = {"rates": 2, "seeds": 2} if quick else {"rates": 25, "seeds": 100}
    with tempfile.TemporaryDirectory(prefix="bdray-n-") as name:
        folder = Path(name)
        conditions = large_space(folder, learning_rates=1, **size).conditions()
        storage = Storage.open(folder / "runs")
        write_templates(storage, templates_of(conditions))
        with cluster(folder) as address:
            first = run(folder, address, until=KILLED_AT)
            progress(f"  killed at {first.done[1]:,} of {len(conditions):,}")
            second = run(folder, address, until=1)
        has = delivered(folder)
    peak = max(first.peak_bytes, second.peak_bytes) / 2**30
    return Report(
        f"{len(conditions):,} conditions over {NODES} nodes, whose trials train nothing",
        "measured",
        [
            Row("seconds a trial", {}, first.trial_s, Target("under", 0.25)),
            Row("driver's peak resident memory, GiB", {}, peak, Target("under", 2.0)),
            Row("from the command typed again to its first trial, s", {}, second.first_s, Target("under", 60)),
            Row("share of the conditions that MLflow has", {}, has / len(conditions), Target("at least", 1)),
            Row("from the last trial to the end of the delivery, s", {}, second.delivering_s),
        ],
        [
            f"Killed by SIGKILL at {first.done[1]:,} conditions; {second.done[0]:,} were done when the second driver"
            " began. MLflow in SQLite, fed while trials run.",
        ],
    )
