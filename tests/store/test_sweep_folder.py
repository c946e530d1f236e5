"""The sweep's folder: what it says of the sweep, and which sweeps there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdray.errors import StorageNotFoundError
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo, sweeps_in


@pytest.fixture
def sweep(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "one")


def test_what_a_sweep_says_of_itself(sweep: Storage) -> None:
    folder = SweepFolder(sweep)
    assert not folder.is_sweep
    with pytest.raises(StorageNotFoundError):
        folder.info()
    folder.write_info(SweepInfo("one", "bdray-one", description="d", created_ms=5, conditions=("a", "b")))
    assert folder.is_sweep
    info = folder.info()
    assert (info.name, info.experiment, info.description, info.created_ms) == ("one", "bdray-one", "d", 5)
    assert list(info.conditions) == ["a", "b"]


def test_a_sweep_without_a_good_sweep_json_keeps_its_name(sweep: Storage) -> None:
    sweep.write_atomic("space.yaml", "name: one")
    sweep.write_atomic("sweep.json", "{")
    assert SweepFolder(sweep).info() == SweepInfo("one", "bdray-one")


def test_what_a_file_browser_leaves_is_no_condition(sweep: Storage) -> None:
    """Found: it was counted, lay outside the plan, and MLflow's run of the sweep never finished."""
    for name in (".DS_Store", "0123456789ab/record.json"):
        sweep.write_atomic(f"conditions/{name}", "")
    assert SweepFolder(sweep).condition_ids() == ["0123456789ab"]


def test_sweeps_of_a_storage(tmp_path: Path) -> None:
    for name in ("b", "a"):
        SweepFolder(Storage.open(tmp_path / name)).write_info(SweepInfo(name, name))
    (tmp_path / "no-sweep").mkdir()
    assert [sweep.name for sweep in sweeps_in(Storage.open(tmp_path))] == ["a", "b"]
