"""What all tests share."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from disks import OwnDisk
from hypothesis import HealthCheck, settings
from record_fixtures import make_baseline, make_record  # noqa: F401 - fixtures

from bdray.condition import COMPONENTS
from bdray.detectors import DETECTORS
from bdray.searches import SEARCHES

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # What a shell starts in the background ignores it, and so would all that is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
# Its device would be every test's: `test_pretended_gpu.py` takes it into a process of its own.
collect_ignore = [] if os.environ.get("BDRAY_PRETENDED") else ["pretended"]
REGISTRIES = (*COMPONENTS.values(), DETECTORS, SEARCHES)

# A busy machine is slow, not wrong: no property fails for the time it takes.
settings.register_profile("bdray", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bdray")

# Tests run side by side; more threads than cores only slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Sweeps of tests are delivered to databases of their own.
os.environ.pop("MLFLOW_TRACKING_URI", None)

LONGEST = ("test_pretended_gpu.py", "test_sweep_end_to_end.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files go to the processes in this order, whole: one that takes minutes and comes last leaves the others idle."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def _nothing_left_behind() -> Iterator[None]:
    """What is registered meanwhile is forgotten afterwards, and so are the modules that registered it: importing them
    once more registers it once more."""
    for registry in REGISTRIES:
        registry.names()
    tables = [table for registry in REGISTRIES for table in (registry._classes, registry._prefixes)]
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        for name in table.keys() - known.keys():
            sys.modules.pop(table[name].__module__, None)
        table.clear()
        table.update(known)


@pytest.fixture(autouse=True, scope="module")
def _registries_of_a_module() -> Iterator[None]:
    """First of a module's fixtures: what they register lasts as long as they do."""
    yield from _nothing_left_behind()


@pytest.fixture(autouse=True)
def _registries_of_a_test() -> Iterator[None]:
    yield from _nothing_left_behind()


@pytest.fixture(autouse=True)
def _path_of_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where plugins were looked for is searched by every import that follows."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(autouse=True)
def _signals_mean_what_they_did() -> Iterator[None]:
    """Tune leaves a handler behind that swallows the next SIGINT; in a module's fixture, before the first test."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _own_opener(monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib keeps the first opener it makes, with the proxies of that moment: a test that sets a dead one would leave
    it to all that follow."""
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with its tables: making them takes 7 s of a core, so tests start from a copy."""
    from bdray.tracking.server import open_client

    folder = tmp_path_factory.mktemp("database")
    open_client(f"sqlite:///{folder}/mlflow.db", (folder / "mlflow-artifacts").as_uri())
    return folder / "mlflow.db"


@pytest.fixture
def database_in_runs(tmp_path: Path, empty_database: Path) -> None:
    """A sweep in `tmp_path` finds its database there."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may look into, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        if not all(parent.stat().st_mode & stat.S_IXOTH for parent in Path(folder).parents):
            pytest.skip("the temporary folder is closed to others")
        yield Path(folder)


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Callable[[str], OwnDisk]]:
    """Makes a file system of the test's own, with mount's options."""
    made: list[OwnDisk] = []

    def make(options: str) -> OwnDisk:
        made.append(OwnDisk(tmp_path / "disk", options))
        return made[-1]

    yield make
    for disk in made:
        disk.end()


@pytest.fixture
def small_disk(own_disk: Callable[[str], OwnDisk]) -> Callable[[int], Path]:
    """Makes the folder of one with so many KiB."""
    return lambda kib: own_disk(f"size={kib}k").path


@pytest.fixture
def ordinary_user() -> Callable[[], AbstractContextManager[None]]:
    """Makes blocks in which this process may do what the modes of files say: root becomes a user who owns nothing."""

    @contextmanager
    def become() -> Iterator[None]:
        if was_root := os.geteuid() == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            if was_root:
                os.seteuid(0)

    return become
