"""A GPU that fails costs itself, not the conditions; a condition that fails on every GPU costs itself, not the GPUs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings, Task
from bdray.cluster.failures import ERROR, UNFIT, GpuFailure, Verdict, gpu_failure, in_one_line
from bdray.cluster.sick_gpus import SickGpus
from bdray.errors import ClusterError
from bdray.store.storage import Storage

pytestmark = pytest.mark.long

SAID = (
    "ray::Condition.train()\nbdray.cluster.gpu_health.GpuLostError: [0a1b] GPU 1 of node 4d4765 gave an error: CUDA e\n"
)


def loss(gpu: str, verdict: Verdict = ERROR) -> GpuFailure:
    return GpuFailure(gpu, f"group of {gpu}", verdict, "CUDA error: unspecified launch failure")


def test_what_a_process_says_of_its_gpu_is_read_back() -> None:
    assert gpu_failure(SAID) == GpuFailure("GPU 1 of node 4d4765", "0a1b", ERROR, "CUDA e")
    assert in_one_line(SAID) == "GPU 1 of node 4d4765 gave an error: CUDA e"
    assert gpu_failure("torch.AcceleratorError: CUDA error: device-side assert triggered") is None


def test_two_conditions_lost_on_a_gpu_are_its_own_fault(caplog: pytest.LogCaptureFixture) -> None:
    gpus = SickGpus()
    assert [gpus.is_at_fault(name, loss("0")) for name in "abc"] == [False] * 3
    assert list(gpus.given_up) == ["0"]
    assert len(caplog.messages) == 1
    assert not gpus.is_at_fault("a", loss("1")), "what it lost on a sick GPU counts no more"


@pytest.mark.parametrize("second", ["0", "1"])
def test_a_condition_lost_twice_where_others_are_not_is_at_fault(second: str) -> None:
    gpus = SickGpus()
    assert [gpus.is_at_fault("a", loss(gpu)) for gpu in ("0", second)] == [False, True]
    assert gpus.given_up == {}
    assert not gpus.is_at_fault("b", loss("0")), "no more is held against the GPU"
    assert gpus.given_up == {}


def test_a_failed_self_test_is_enough() -> None:
    gpus = SickGpus()
    assert not gpus.is_at_fault("a", loss("0", UNFIT))
    assert list(gpus.given_up) == ["0"]


def test_without_any_gpu_left_there_is_no_point_in_waiting() -> None:
    gpus = SickGpus(lambda given_up: 2 - len(given_up))
    gpus.is_at_fault("a", loss("0", UNFIT))
    with pytest.raises(ClusterError, match=r"no GPU is left that works: 0: CUDA error.*; 1: CUDA error"):
        gpus.is_at_fault("b", loss("1", UNFIT))


WORK = '''
import time
from pathlib import Path
import ray, torch
from bdray.cluster import gpu_health

NOTE = Path(__file__).parent / "ran"

def gpu():
    return ray.get_runtime_context().get_accelerator_ids()["GPU"][0]

def note(task):
    with NOTE.open("a") as file:
        print(gpu(), task.condition_id, time.time(), file=file)

def fail():
    raise torch.AcceleratorError("CUDA error: device-side assert triggered")

def sick_zero(job, task):
    """On the first GPU all goes wrong; the other one waits until it has, and then once as long as two processes took to
    start, so that another one starts on the first GPU, if it may."""
    note(task)
    if gpu() == "0":
        fail()
    while NOTE.read_text().count("0 c") < 2:
        time.sleep(0.05)
    waited = NOTE.with_name("waited")
    if not waited.exists():
        waited.touch()
        first = float(NOTE.read_text().split()[2])
        time.sleep(2 * (first - Path(__file__).stat().st_mtime))
    return "finished"

def all_sick(job, task):
    note(task)
    fail()

def faulty_first(job, task):
    note(task)
    if task.condition_id == "c0":
        fail()
    return "finished"

def unfit_zero(job, task):
    note(task)
    return "finished"

if "unfit" in str(NOTE):
    gpu_health._problem = lambda: "a convolution comes to something else" if gpu() == "0" else ""
'''


class Heard:
    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.lost_for: dict[str, str] = {}

    def started(self, condition_id: str) -> None: ...

    def ended(self, condition_id: str, status: str) -> None:
        self.ends[status] += 1

    def restarts(self, condition_id: str, cause: str) -> None: ...

    def lost(self, condition_id: str, cause: str, detail: str) -> None:
        assert gpu_failure(detail)
        self.lost_for[condition_id] = cause


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterRun]:
    with ClusterRun(ClusterSettings(num_cpus=4, num_gpus=2, dashboard=False)) as run:
        yield run


def run(cluster: ClusterRun, folder: Path, work: str, share: float = 1.0) -> tuple[Heard, list[str]]:
    """What was heard, and the GPU of each start, of 8 conditions."""
    (folder / f"{work}_work.py").write_text(WORK)
    storage = Storage.open(folder / "runs")
    tasks = [Task(f"c{number}", "{}", (), gpu=share) for number in range(8)]
    path = (*sys.path, str(folder))
    job = ClusterJob(storage.child("sweep"), storage, tasks, sys_path=path, work=f"{work}_work:{work}")
    heard = Heard()
    assert cluster.run(job, heard)
    return heard, [line.split()[0] for line in (folder / "ran").read_text().splitlines()]


@pytest.mark.system
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_sick_gpu_takes_no_condition_with_it(
    cluster: ClusterRun, tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    heard, ran_on = run(cluster, tmp_path, "sick_zero", share)
    assert (heard.ends, heard.lost_for) == ({"finished": 8}, {})
    # The other half of it may have been at work already.
    assert 2 <= ran_on.count("0") <= 2 / share
    (said,) = [message for message in caplog.messages if "gets no more trials" in message]
    assert said.startswith("GPU 0 of node")


@pytest.mark.system
def test_nothing_runs_on_a_gpu_that_fails_its_self_test(cluster: ClusterRun, tmp_path: Path) -> None:
    folder = tmp_path / "unfit"
    folder.mkdir()
    heard, ran_on = run(cluster, folder, "unfit_zero", 0.5)
    assert heard.ends == {"finished": 8}
    assert set(ran_on) == {"1"}


@pytest.mark.system
def test_a_condition_that_fails_on_gpus_that_work_is_given_up(
    cluster: ClusterRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard, ran_on = run(cluster, tmp_path, "faulty_first")
    assert heard.ends == {"finished": 7}
    assert list(heard.lost_for) == ["c0"]
    assert "gave an error: CUDA error: device-side assert triggered" in heard.lost_for["c0"]
    assert len(ran_on) == 9
    assert caplog.messages == []


@pytest.mark.system
def test_a_sweep_ends_when_no_gpu_is_left(cluster: ClusterRun, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no GPU is left that works: GPU"):
        run(cluster, tmp_path, "all_sick")
