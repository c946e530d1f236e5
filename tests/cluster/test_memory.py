"""The memory of a machine runs out, for Ray's own monitor, which kills whoever uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ray.air.execution import FixedResourceManager, ResourceRequest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import OutOfMemoryError, RayActorError
from waiting import HANG_S

from bdray.cluster.daemons import memory_kills_as_actor_errors
from bdray.cluster.failures import in_one_line, memory_exhausted
from bdray.store.records import read_records
from bdray.store.storage import Storage

ROOT = Path(__file__).parents[2]
PLUGIN = '''
import os, time
from pathlib import Path
import ray
from bdray.triggers.base import TRIGGERS, Trigger

@TRIGGERS.register("memory_eater")
class Eater(Trigger):
    """Needs more memory than there is until it has so many CPUs of the machine."""
    note: str
    enough: float

    def apply(self, images, generator):
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
        with Path(self.note).open("a") as note:
            print(f"{self.enough:g} {cpus:g} {os.getpid()}", file=note)
        if cpus < self.enough:
            kept = bytearray(EXTRA)
            kept[::4096] = b"x" * len(kept[::4096])
            time.sleep(300)
        return 255 - images
'''
SPACE = """\
name: hungry
seeds: [0]
plugins: [memory_plugin]
fixed:
  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}
  model: {name: resnet8}
  trigger: {name: memory_eater, note: NOTE}
  train: {epochs: 1, batch_size: 32}
  finetune: {epochs: 0}
parameters:
  trigger.enough: {values: [4, 9]}
resources: {cpu: 1}
"""
GB = 2**30


@pytest.mark.system
@pytest.mark.long
def test_a_share_is_doubled_up_to_a_whole_machine_and_then_the_numbers_are_recorded(tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    if "BDRAY_MEMORY_TEST" not in os.environ or memory.available < 9 * GB:
        pytest.skip("takes 9 GB of free memory and minutes: BDRAY_MEMORY_TEST=1")
    # Room for Ray, driver, mirror and a trial, and for what others take meanwhile; more than that is too much.
    room, extra = 4 * GB, 5 * GB
    limit = (memory.total - memory.available + room) / memory.total
    (tmp_path / "memory_plugin.py").write_text(PLUGIN.replace("EXTRA", str(extra)))
    (tmp_path / "hungry.yaml").write_text(SPACE.replace("NOTE", str(tmp_path / "note")))
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "bdray.sweep",
            "hungry.yaml",
            "--no-dashboard",
            *("--num-cpus", "4", "--max-concurrent", "1"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_memory_usage_threshold": f"{limit:.3f}"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    said = " ".join((run.stdout + run.stderr).split())
    assert run.returncode == 1, said
    found = read_records(Storage.open(tmp_path / "runs" / "hungry"))
    records = {record.condition["trigger"]["enough"]: record for record in found}
    assert records.keys() == {4, 9}, said
    assert [records[enough].status for enough in (4, 9)] == ["finished", "failed"], said
    error = records[9].error
    assert error is not None
    assert error.kind == "OutOfMemory"
    assert "it needs more than" in error.message
    assert "all CPUs of the largest machine" in error.message
    assert "3 times in a row" in error.message
    # Doubled twice each. A process stamps more than once, and one may be killed before it does, for what others take.
    tries = [tuple(line.split()) for line in (tmp_path / "note").read_text().splitlines()]
    for name in ("4", "9"):
        assert list(dict.fromkeys(cpus for enough, cpus, _ in tries if enough == name)) == ["1", "2", "4"]
    assert len({process for enough, cpus, process in tries if (enough, cpus) == ("9", "4")}) <= 3
    assert "2 CPUs are its share now" in said


@pytest.mark.system
def test_a_memory_kill_is_the_end_of_an_actor_here_and_nowhere_else() -> None:
    """Tune alone takes it for the end of the run; once it does not, `memory_kills_as_actor_errors` can go."""
    said: list[Exception] = []

    def kill() -> None:
        resources, request = FixedResourceManager({"CPU": 1}), ResourceRequest([{"CPU": 1}])
        resources.request_resources(request)
        manager, actor = RayActorManager(resources), TrackedActor(1, on_error=lambda _, error: said.append(error))
        manager._live_actors_to_ray_actors_resources[actor] = (None, resources.acquire_resources(request))
        manager._actor_task_failed(TrackedActorTask(actor), OutOfMemoryError("the node ran low on memory"))

    with pytest.raises(RuntimeError, match="unexpected exception"):
        kill()
    with memory_kills_as_actor_errors():
        kill()
    with pytest.raises(RuntimeError, match="unexpected exception"):
        kill()
    (error,) = said
    assert isinstance(error, RayActorError)
    assert "ran low on memory" in str(error)


def test_rays_words_for_it() -> None:
    said = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: 34) was"
        " 10.71GB used / 23.54GB limit (0.455053)\nOOM kill reason: ..."
    )
    machine = "a machine of 23.54 GB"
    assert in_one_line(said) == f"it needs more memory than was left on {machine}, 10.71 GB of which were used"
    killed = [
        "\nSelected to kill: (Task: job ID=01, lease ID=02, task name=eat, required resources={CPU: 1}, pid=26024,"
        f" actual memory used={size}GB, worker ID=3e)"
        for size in ("2.06", "3.00")
    ]
    said += "\nRay killed 1 worker(s) based on the killing policy\nConsidered workers: ["
    assert in_one_line(said + killed[0]) == f"it needs more than 2.06 GB on {machine}, 8.65 GB of which others used"
    both = said + "".join(killed)
    assert in_one_line(both) == f"it needs more than 2.06 GB on {machine}, 5.65 GB of which others used"
    assert memory_exhausted("The worker died unexpectedly. Worker exit detail: SIGKILL") == ""
