"""A sweep in an object store: two drivers never run it at once, and it goes on where one was killed."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from waiting import HANG_S, until

from bdray.store.file_names import DRIVER_LOCK
from bdray.store.locks import Holder
from bdray.store.records import read_records
from bdray.store.storage import Storage
from benchmarks.clock import Clock
from benchmarks.slow_store import slow_store

pytestmark = [pytest.mark.system, pytest.mark.long]

ROOT = Path(__file__).parents[2]
SPACE = """\
name: far
seeds: [0]
fixed:
  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 40}
  model: {name: resnet8}
  train: {epochs: 40, batch_size: 32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1}
parameters:
  trigger.name: {values: [patch, blend]}
"""


@pytest.fixture
def storage() -> Iterator[Storage]:
    with slow_store() as store:
        yield Storage.open(store.uri("runs"))


class Drivers:
    """Real commands over one storage; what is left of them is killed."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.folder, self.storage = folder, storage
        self.started: list[subprocess.Popen[str]] = []
        (folder / "far.yaml").write_text(SPACE)

    def start(self, *prefix: str, environment: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[str]:
        options = ["--storage", self.storage.location, "--tracking-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command = [*prefix, sys.executable, "-m", "bdray.sweep", "far.yaml", "--no-dashboard", "--num-cpus", "1"]
        process = subprocess.Popen(
            [*command, *options],
            cwd=self.folder,
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "BDRAY_CACHE": str(self.folder / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def holder(self) -> Holder | None:
        """Who holds the sweep; waits until anybody does."""
        sweep = self.storage.child("far")
        until(lambda: sweep.exists(DRIVER_LOCK), self.started[-1])
        return Holder.parse(sweep.read_bytes(DRIVER_LOCK))


@pytest.fixture
def drivers(tmp_path: Path, storage: Storage) -> Iterator[Drivers]:
    drivers = Drivers(tmp_path, storage)
    yield drivers
    for process in drivers.started:
        process.kill()
        process.wait()


def apart() -> list[str]:
    """Process numbers of their own, as on another machine; not everybody may do that."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    return command if allowed else []


def test_a_second_driver_is_told_of_the_first_and_goes_on_after_its_death(drivers: Drivers, storage: Storage) -> None:
    first = drivers.start()
    holder = drivers.holder()
    assert holder is not None
    for prefix in ([], apart()):
        second = drivers.start(*prefix)
        said, _ = second.communicate(timeout=HANG_S)
        assert second.returncode == 2, said
        named = re.search(r"being run by process (\d+) on (\S+) since", " ".join(said.split()))
        assert named is not None, said
        assert (int(named[1]), named[2]) == (holder.pid, holder.host)
    assert first.poll() is None, "the first one goes on"
    first.kill()
    first.wait()
    third = drivers.start()
    said, _ = third.communicate(timeout=HANG_S)
    assert third.returncode == 0, said
    assert [record.status for record in read_records(storage.child("far"))] == ["finished"] * 2
    assert not {DRIVER_LOCK, "mirror.lock"} & set(storage.child("far").list()), "given back"


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="a clock is set with Linux and a cc")
def test_clocks_that_differ_neither_steal_a_lease_nor_wait_for_it(drivers: Drivers, storage: Storage) -> None:
    """The second driver, on another machine as far as anybody can tell, has another time of day than the first: an hour
    behind or ahead, by the run's seed, for each takes a minute and a half."""
    clock = Clock(drivers.folder)
    first = drivers.start()
    holder = drivers.holder()
    assert holder is not None
    clock.set(random.choice((-3600, 3600)))
    second = drivers.start(*apart(), environment=clock.environment)
    said, _ = second.communicate(timeout=HANG_S)
    assert second.returncode == 2 and f"being run by process {holder.pid} on" in said, said
    assert first.poll() is None, "the first one goes on"
    first.kill()
    first.wait()
    third = drivers.start(*apart(), environment=clock.environment)
    said, _ = third.communicate(timeout=HANG_S)
    assert third.returncode == 0, said
    assert [record.status for record in read_records(storage.child("far"))] == ["finished"] * 2
