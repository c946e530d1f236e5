"""A process that measures: what it cannot measure costs nothing beside it, and says why."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings
from bdray.cluster.measuring import measured_elsewhere
from bdray.condition import Condition
from bdray.store.storage import Storage
from bdray.trial.measured import Unmeasured
from bdray.trial.needs import Need

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="bdray-m-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def job(folder: Path) -> Iterator[ClusterJob]:
    sweep = Storage.open(folder / "runs")
    with ClusterRun(ClusterSettings(num_cpus=1, dashboard=False)):
        yield ClusterJob(sweep, sweep, ())


def condition(seed: int) -> Condition:
    return Condition.parse({"data": "digits", "model": "resnet8", "trigger": {"name": "patch"}, "seed": seed})


def test_a_kind_that_does_not_fit_costs_none_of_those_beside_it(folder: Path, job: ClusterJob) -> None:
    note = str(folder / "note")

    def measure(condition: Condition, job: ClusterJob) -> BaseModel:
        # Its names are its own: Ray takes the function to another process.
        from pathlib import Path

        from bdray.errors import UserError
        from bdray.trial.measured import Unmeasured
        from bdray.trial.needs import Need

        with Path(note).open("a") as file:
            print(condition.seed, os.getpid(), file=file)
        tries = [line.split() for line in Path(note).read_text().splitlines()]
        first = [process for _, process in tries].count(str(os.getpid())) == 1
        if condition.seed == 1 or (condition.seed == 2 and not first):
            os.kill(os.getpid(), signal.SIGKILL)
        if condition.seed == 3:
            raise UserError("train.lr: is wrong")
        if condition.seed == 4:
            return Unmeasured("not worth it", failed=False)
        return Need(peak_bytes=condition.seed, total_bytes=100)

    found = measured_elsewhere({"num_cpus": 1}, job, measure, [condition(seed) for seed in (0, 2, 1, 3, 4, 5)])
    died = found[2]
    assert isinstance(died, Unmeasured) and died.cause
    assert found == [
        Need(peak_bytes=0, total_bytes=100),
        Need(peak_bytes=2, total_bytes=100),
        died,
        Unmeasured("train.lr: is wrong"),
        Unmeasured("not worth it", failed=False),
        Need(peak_bytes=5, total_bytes=100),
    ]
    tries = [line.split() for line in Path(note).read_text().splitlines()]
    # Those that failed were tried once more, each in a process that measured nothing else.
    assert [int(seed) for seed, _ in tries] == [0, 2, 1, 3, 4, 5, 2, 1, 3]
    assert [process for _, process in tries[-3:]] == list(dict.fromkeys(process for _, process in tries))[-3:]


def test_a_measurement_that_hangs_is_none(job: ClusterJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdray.cluster.measuring.MEASURED_S", 2.0)

    def measure(condition: Condition, job: ClusterJob) -> BaseModel:
        import time

        time.sleep(3600)
        raise AssertionError

    found = measured_elsewhere({"num_cpus": 1}, job, measure, [condition(0)])
    assert isinstance(found[0], Unmeasured)
    assert found[0].failed
