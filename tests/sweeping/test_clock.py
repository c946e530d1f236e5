"""A clock that is set back and forward: between two runs of a sweep, while one runs, and in what looks at it."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from waiting import until

from bdray.cluster.job import Task
from bdray.condition import Condition
from bdray.record import EpochRecord, TrialRecord
from bdray.store.journal import Journal
from bdray.store.records import read_records
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.forecast import Capacity
from bdray.sweeping.watching import Watcher
from bdray.tracking.server import open_client
from benchmarks.chaos import SPACE, Sweep
from benchmarks.clock import Clock

HOUR, DAY = 3600, 86400
EPOCHS = 16

settable = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="a clock is set for some programs with Linux and a cc"
)


@dataclass
class Run:
    """A sweep whose clock is set."""

    sweep: Sweep
    clock: Clock

    @property
    def folder(self) -> Path:
        return self.sweep.folder / "runs" / "chaos"

    @property
    def lines(self) -> int:
        return sum(len(path.read_bytes().splitlines()) for path in self.folder.glob("conditions/*/journal.jsonl"))

    def wait_for(self, process: subprocess.Popen[str], lines: int) -> None:
        """Waits until so many lines are in its journals."""
        until(lambda: self.lines >= lines, process)

    def lefts(self, process: subprocess.Popen[str]) -> Sequence[float]:
        """What it says of the time left, until its end."""
        seen = list[float]()

        def is_over() -> bool:
            with suppress(OSError, ValueError):
                seen.append(json.loads((self.folder / "progress.json").read_text())["left_s"])
            return process.poll() is not None

        until(is_over)
        return [left for left in seen if left is not None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    # Ray's sockets lie below it, whose paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="clock") as folder:
        clock = Clock(Path(folder))
        database = Path(folder, "empty.db")
        open_client(f"sqlite:///{database}")
        sweep = Sweep(Path(folder, "s"), database, cpus=1, space=SPACE.replace("epochs: 8", f"epochs: {EPOCHS}"))
        for name, value in clock.environment.items():
            monkeypatch.setenv(name, value)
        yield Run(sweep, clock)


@settable
@pytest.mark.system
@pytest.mark.long
def test_a_sweep_whose_clock_is_set_again_and_again(run: Run) -> None:
    """Killed at the true time, it goes on a day before, loses an hour more on its way, is killed, ends a day after."""
    beside, space = run.sweep.folder.parent, (run.sweep.folder / "chaos.yaml").read_text()
    undisturbed = Sweep(beside / "u", beside / "empty.db", cpus=1, space=space)
    assert undisturbed.start().wait() == 0, undisturbed.said
    for before, behind, lines in ((0, 0, 5), (-DAY, -DAY - HOUR, 24)):
        run.clock.set(before)
        process = run.sweep.start()
        run.wait_for(process, lines)
        run.clock.set(behind)
        run.wait_for(process, lines + 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.read_bytes().splitlines() for path in run.folder.glob("conditions/*/journal.jsonl")}
    run.clock.set(DAY)
    process = run.sweep.start()
    lefts = run.lefts(process)
    assert process.returncode == 0, run.sweep.said
    assert run.sweep.results == undisturbed.results, "nothing lost, nothing else"
    for path, lines_before in kept.items():
        assert path.read_bytes().splitlines()[: len(lines_before)] == lines_before, "nothing computed again"
    assert lefts and max(lefts) < HOUR / 2 and min(lefts) >= 0
    assert all(0 < record.finished_ms - record.started_ms < HOUR * 500 for record in records_of(run))
    assert times_in_mlflow(run.sweep.folder / "runs" / "mlflow.db") == 4


@settable
@pytest.mark.system
@pytest.mark.long
def test_a_clock_that_is_set_while_a_sweep_runs(run: Run) -> None:
    process = run.sweep.start()
    for lines, ahead in ((5, -HOUR), (12, DAY), (24, -DAY)):
        run.wait_for(process, lines)
        run.clock.set(ahead)
    lefts = run.lefts(process)
    assert process.returncode == 0, run.sweep.said
    assert lefts and max(lefts) < HOUR / 2 and min(lefts) >= 0
    assert all(0 < record.finished_ms - record.started_ms < HOUR * 500 for record in records_of(run))
    assert times_in_mlflow(run.sweep.folder / "runs" / "mlflow.db") == 4


def records_of(run: Run) -> Sequence[TrialRecord]:
    return read_records(Storage.open(run.folder))


def times_in_mlflow(database: Path) -> int:
    """How many runs there are; all have ended, after they began."""
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute("select status, start_time, end_time from runs").fetchall()
    assert all(status == "FINISHED" and start <= end for status, start, end in rows), rows
    return len(rows)


@pytest.mark.parametrize("set_by", [-DAY, -HOUR, 0, HOUR, DAY])
def test_the_time_left_does_not_know_the_clock(tmp_path: Path, set_by: int) -> None:
    """A clock is set in an epoch, or that of the node where it is computed was never right."""
    condition = Condition.parse(
        {"data": "digits", "model": "resnet8", "trigger": "patch", "train": {"epochs": 10}, "finetune": {"epochs": 0}}
    )
    sweep, now = Storage.open(tmp_path), [1000.0]
    SweepFolder(sweep).write_info(SweepInfo("s", "s"))
    name = condition.condition_id
    watcher = Watcher(
        sweep,
        [condition],
        [Task(name, "{}", ())],
        lambda: Capacity(1.0),
        clock=lambda: now[0],
        wall_ms=lambda: int(1000 * (now[0] + 1_700_000_000)),
    )
    watcher.started(name)
    journal = Journal(SweepFolder(sweep).condition(name))
    epoch = EpochRecord(epoch=1, images=1000, seconds=100.0, stage_seconds=100.0)
    written = int(1000 * (now[0] + 1_700_000_000 + 100 + set_by))
    journal.add("poison", "poisoned", [epoch.model_copy(update={"finished_ms": written})])
    left = list[float]()
    for passed in (105.0, 150.0):
        now[0] = 1000.0 + passed
        watcher.look()
        left.append(watcher.left_s() or 0.0)
    assert left[0] - left[1] == pytest.approx(45.0), "it passes as time does"
    # Nine epochs of 100 s and their evaluations, less what has passed since the line: 0 to 105 s.
    assert 800 < left[0] < 920
