"""Conditions as trials of a real Ray cluster of two logical CPUs."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings, Task
from bdray.condition import Condition
from bdray.store.records import read_record
from bdray.store.storage import Storage

pytestmark = [pytest.mark.system, pytest.mark.long]

PLUGIN = '''
import os, time
from pathlib import Path
from bdray.triggers.base import TRIGGERS, Trigger

@TRIGGERS.register("runner_killer")
class Killer(Trigger):
    """Ends its process as the kernel does when memory runs out: always, or only the first time."""
    note: str
    times: int

    def apply(self, images, generator):
        note = Path(self.note)
        count = len(note.read_text()) if note.exists() else 0
        note.write_text("x" * (count + 1))
        if count < self.times:
            os.kill(os.getpid(), 9)
        return 255 - images

@TRIGGERS.register("runner_glutton")
class Glutton(Trigger):
    """Asks for more memory than there is, as a GPU's allocator sees it, until it has so much of a GPU."""
    enough: float

    def apply(self, images, generator):
        import ray, torch
        if ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0) < self.enough:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 9 GiB. Advice.")
        return 255 - images

@TRIGGERS.register("runner_sleeper")
class Sleeper(Trigger):
    """Takes its time."""
    note: str

    def apply(self, images, generator):
        Path(self.note).write_text("asleep")
        time.sleep(3600)
        return 255 - images
'''


MOMENTS = '''
import gc, os, subprocess, sys
from pathlib import Path
from bdray.triggers.base import TRIGGERS, Trigger

HERE = Path(__file__).parent

def die_once(moment):
    note = HERE / moment
    try:
        note.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), 9)

def called_from(name):
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == name:
            return True
        frame = frame.f_back
    return False

if __name__.endswith("starting") and called_from("set_up_worker"):
    die_once("starting")

@TRIGGERS.register("runner_mortal")
class Mortal(Trigger):
    """Ends its process once, at the moment it is told."""
    moment: str

    def apply(self, images, generator):
        if self.moment == "training":
            die_once("training")
        if self.moment == "resetting":
            gc.callbacks.append(lambda phase, info: called_from("reset_config") and die_once("resetting"))
        if self.moment == "idle" and not (HERE / "idle").exists():
            (HERE / "idle").touch()
            subprocess.Popen(["sh", "-c", f"sleep 2; kill -9 {os.getpid()}"])
        return 255 - images
'''


class Heard:
    """An observer that notes what it hears."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ends: dict[str, str] = {}
        self.causes: dict[str, str] = {}
        self.restarted: list[str] = []
        self.why: list[str] = []

    def started(self, condition_id: str) -> None:
        self.began.append(condition_id)

    def ended(self, condition_id: str, status: str) -> None:
        assert condition_id not in self.ends
        self.ends[condition_id] = status

    def restarts(self, condition_id: str, cause: str) -> None:
        self.restarted.append(condition_id)
        self.why.append(cause)

    def lost(self, condition_id: str, cause: str, detail: str) -> None:
        assert cause.strip().count("\n") == 0
        self.causes[condition_id] = cause


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "runner_plugin.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def cluster(plugins: Path) -> Iterator[ClusterRun]:
    sys.path.append(str(plugins))
    __import__("runner_plugin")
    before = signal.getsignal(signal.SIGTERM)
    with ClusterRun(ClusterSettings(num_cpus=2, num_gpus=1, dashboard=False)) as run:
        # Ray's own would end the process with status 15.
        assert signal.getsignal(signal.SIGTERM) is before
        yield run
    sys.path.remove(str(plugins))


@pytest.fixture
def sweep(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "runs" / "sweep")


def condition(**sections: Any) -> Condition:
    return Condition.parse(
        {
            "data": {"name": "digits", "image_size": 16, "train_limit": 64, "test_limit": 40},
            "model": {"name": "resnet8"},
            "trigger": {"name": "patch"},
            "train": {"epochs": 1, "batch_size": 32},
            "finetune": {"epochs": 1, "batch_size": 32, "fraction": 0.1},
            **sections,
        }
    )


def job(sweep: Storage, plugins: Path, *conditions: Condition) -> ClusterJob:
    tasks = [Task(one.condition_id, json.dumps(one.content()), (one.poison_fingerprint,)) for one in conditions]
    return ClusterJob(
        sweep=sweep,
        storage=sweep.parent,
        tasks=tasks,
        plugins=("runner_plugin",),
        sys_path=(*sys.path, str(plugins)),
        cwd=str(Path.cwd()),
        trial_options={"device": "cpu"},
    )


def test_every_condition_leaves_a_record_and_stages_are_shared(
    cluster: ClusterRun, sweep: Storage, plugins: Path
) -> None:
    assert cluster.dashboard_url is None
    assert cluster.resources() == {"cpu": 2.0, "gpu": 1.0}
    leader = condition()
    follower = condition(finetune={**leader.finetune.model_dump(), "lr": 0.2})
    broken = condition(finetune={**leader.finetune.model_dump(), "fraction": 0.001}, seed=5)
    heard, before = Heard(), signal.getsignal(signal.SIGINT)
    assert cluster.run(job(sweep, plugins, leader, follower, broken), heard)
    # Tune's own would swallow the next Ctrl-C, during the delivery to MLflow for instance.
    assert signal.getsignal(signal.SIGINT) is before
    names = [one.condition_id for one in (leader, follower, broken)]
    assert heard.ends == dict(zip(names, ("finished", "finished", "failed"), strict=True))
    assert sorted(heard.began) == sorted(names)
    first, second, third = (read_record(sweep, name) for name in names)
    assert first is not None
    assert second is not None
    assert third is not None
    assert [record.stages[0].reused for record in (first, second)] == [False, True]
    assert third.error is not None
    assert third.error.kind == "DataError"


def test_a_process_that_dies_is_started_again_and_given_up_the_third_time(
    cluster: ClusterRun, sweep: Storage, plugins: Path, tmp_path: Path
) -> None:
    notes = {times: tmp_path / f"deaths-{times}" for times in (1, 99)}
    once, always = (
        condition(trigger={"name": "runner_killer", "note": str(note), "times": times}) for times, note in notes.items()
    )
    heard = Heard()
    assert cluster.run(job(sweep, plugins, once, always), heard)
    assert heard.ends == {once.condition_id: "finished"}
    assert list(heard.causes) == [always.condition_id]
    assert heard.causes[always.condition_id]
    assert len(notes[1].read_text()) > 1
    assert len(notes[99].read_text()) == 3
    assert sorted(heard.restarted) == sorted([once.condition_id, always.condition_id, always.condition_id])
    assert read_record(sweep, always.condition_id) is None


def test_a_part_of_a_gpu_that_is_too_small_is_doubled_up_to_a_whole_one(
    cluster: ClusterRun, sweep: Storage, plugins: Path
) -> None:
    """A logical GPU, and torch's error without one: what its allocator does is not seen here."""
    half, never = (condition(trigger={"name": "runner_glutton", "enough": enough}) for enough in (0.5, 2.0))
    work, heard = job(sweep, plugins, half, never), Heard()
    assert cluster.run(replace(work, tasks=[replace(one, gpu=0.25) for one in work.tasks]), heard)
    assert heard.ends == {half.condition_id: "finished", never.condition_id: "failed"}
    assert sorted(heard.restarted) == sorted([half.condition_id, never.condition_id, never.condition_id])
    first, last = heard.why[0], heard.why[-1]
    problem = "the memory of its share of a GPU ran out: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert first == f"{problem}; 1/2 of a GPU is its share now"
    assert last == f"{problem}; 1 of a GPU is its share now"
    record = read_record(sweep, never.condition_id)
    assert record is not None
    assert record.error is not None
    assert record.error.kind == "OutOfMemory"
    assert "a whole GPU as this trial's share" in record.error.message


@pytest.mark.parametrize("moment", ["starting", "training", "resetting", "idle"])
def test_a_process_may_be_lost_at_any_moment(cluster: ClusterRun, sweep: Storage, tmp_path: Path, moment: str) -> None:
    """Tune alone gives up a trial whose process dies while it is reset, without a second try."""
    name = f"mortal_{moment}"
    (tmp_path / f"{name}.py").write_text(MOMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        importlib.import_module(name)
        seeds = [condition(trigger={"name": "runner_mortal", "moment": moment}, seed=seed) for seed in range(4)]
    # One at a time, so that every process is reset; what waits for the stage of another leaves a process idle.
    follower = condition(trigger=seeds[0].trigger, finetune={**seeds[0].finetune.model_dump(), "lr": 0.2})
    one_by_one = ClusterRun(ClusterSettings(max_concurrent=2 if moment == "idle" else 1))
    heard = Heard()
    work = replace(job(sweep, tmp_path, *seeds, follower), plugins=(name,))
    assert one_by_one.run(work, heard)
    assert (tmp_path / moment).exists()
    assert heard.ends == {one.condition_id: "finished" for one in (*seeds, follower)}
    assert heard.causes == {}
    assert len(heard.restarted) <= 1


TOGETHER = """
import os, sys, time
from pathlib import Path

HERE = Path(__file__).parent

def called_from(name):
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None

if called_from("set_up_worker"):
    (HERE / f"process-{os.getpid()}").touch()
    while len(list(HERE.glob("process-*"))) < 4:
        time.sleep(0.1)

def work(job, task):
    return "finished"
"""


def test_processes_start_side_by_side(cluster: ClusterRun, sweep: Storage, tmp_path: Path) -> None:
    """Each waits in its set-up for three others: one after the other, none would ever be ready."""
    (tmp_path / "together.py").write_text(TOGETHER)
    tasks = [Task(f"c{number}", "{}", (), cpu=0.5, gpu=0.25) for number in range(4)]
    job = ClusterJob(sweep, sweep, tasks, plugins=("together",), sys_path=(str(tmp_path),), work="together:work")
    heard = Heard()
    assert cluster.run(job, heard)
    assert heard.ends == dict.fromkeys(("c0", "c1", "c2", "c3"), "finished")


def test_sigterm_ends_the_run_and_says_so(cluster: ClusterRun, sweep: Storage, plugins: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    one = condition(trigger={"name": "runner_sleeper", "note": str(note)})

    def interrupt() -> None:
        while not note.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    helper = threading.Thread(target=interrupt)
    helper.start()
    heard = Heard()
    assert cluster.run(job(sweep, plugins, one), heard) is False
    helper.join()
    assert heard.ends == {}
    assert signal.getsignal(signal.SIGTERM) is before
    assert ray.is_initialized()
