"""A process that measures: what it cannot measure costs nothing beside it, and says why."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings
from bdray.cluster.measuring import measured_elsewhere
from bdray.condition import Condition
from bdray.store.storage import Storage
from bdray.trial.measurements import Answer, Measurement, TrainingKind

pytestmark = [pytest.mark.system, pytest.mark.long]


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


def kind(seed: int) -> TrainingKind:
    content = {"data": "digits", "model": "resnet8", "trigger": {"name": "patch"}, "seed": seed}
    return TrainingKind(Condition.parse(content), 1e9, frozenset({"cost"}))


def test_a_kind_that_does_not_fit_costs_none_of_those_beside_it(folder: Path, job: ClusterJob) -> None:
    note = str(folder / "note")

    def measure(kind: TrainingKind, job: ClusterJob) -> Answer:
        # Its names are its own: Ray takes the function to another process.
        from pathlib import Path

        from bdray.trial.measurements import Answer, Measurement

        with Path(note).open("a") as file:
            print(kind.example.seed, os.getpid(), file=file)
        tries = [line.split() for line in Path(note).read_text().splitlines()]
        first = [process for _, process in tries].count(str(os.getpid())) == 1
        if kind.example.seed == 1 or (kind.example.seed == 2 and not first):
            os.kill(os.getpid(), signal.SIGKILL)
        if kind.example.seed == 3:
            return Answer(problems={"cost": "train.lr: is wrong"})
        if kind.example.seed == 4:
            return Answer()
        return Answer(Measurement(model_bytes=kind.example.seed))

    found = measured_elsewhere({"num_cpus": 1}, job, measure, [kind(seed) for seed in (0, 2, 1, 3, 4, 5)])
    died = found[2].problems["cost"]
    assert died
    assert found == [
        Answer(Measurement(model_bytes=0)),
        Answer(Measurement(model_bytes=2)),
        Answer(problems={"cost": died}),
        Answer(problems={"cost": "train.lr: is wrong"}),
        Answer(),
        Answer(Measurement(model_bytes=5)),
    ]
    tries = [line.split() for line in Path(note).read_text().splitlines()]
    # Those that failed were tried once more, each in a process that measured nothing else.
    assert [int(seed) for seed, _ in tries] == [0, 2, 1, 3, 4, 5, 2, 1, 3]
    assert [process for _, process in tries[-3:]] == list(dict.fromkeys(process for _, process in tries))[-3:]


def test_a_measurement_that_hangs_is_none(job: ClusterJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdray.cluster.measuring.MEASURED_S", 2.0)

    def measure(kind: TrainingKind, job: ClusterJob) -> Answer:
        import time

        time.sleep(3600)
        raise AssertionError

    found = measured_elsewhere({"num_cpus": 1}, job, measure, [kind(0)])
    assert found[0].measurement is None
    assert found[0].problems["cost"]
