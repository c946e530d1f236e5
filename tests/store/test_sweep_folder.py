"""The sweep's folder: what its files say, and whose record a record is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdray.condition import Condition
from bdray.errors import StorageNotFoundError
from bdray.record import ErrorRecord
from bdray.store.storage import Storage
from bdray.store.sweep_folder import (
    BASELINE_NOTE,
    ERROR,
    POISONED_WARNING,
    ConditionFolder,
    SweepFolder,
    SweepInfo,
    blank_record,
    read_records,
    sweeps_in,
    warning_for,
    write_failure,
)

CONDITION = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch"})


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


def test_a_condition_and_its_record(sweep: Storage) -> None:
    folder = ConditionFolder(sweep, CONDITION.condition_id)
    assert not folder.has_begun
    folder.write_condition(CONDITION)
    info = folder.info()
    assert info is not None
    assert (info.cell_id, info.role) == (CONDITION.cell_id, "poisoned")
    assert info.flat["trigger.size"] == 3
    record = blank_record(CONDITION, started_ms=7)
    folder.write_record(record)
    kept = folder.record()
    assert kept is not None
    assert kept.record == record
    assert ConditionFolder(sweep, CONDITION.condition_id).has_begun


def test_another_conditions_record_is_none(sweep: Storage) -> None:
    ConditionFolder(sweep, CONDITION.condition_id).write_record(blank_record(CONDITION, 0))
    data = sweep.read_bytes(f"conditions/{CONDITION.condition_id}/record.json")
    other = ConditionFolder(sweep, "0" * 12)
    other.storage.write_atomic("record.json", data)
    assert other.record() is None
    assert [record.condition_id for record in read_records(sweep)] == [CONDITION.condition_id]


def test_a_failure_leaves_a_record_and_its_reason(sweep: Storage) -> None:
    error = ErrorRecord(kind="ValueError", message="no")
    write_failure(sweep, CONDITION, error, started_ms=1, detail="Traceback ...\n\n")
    (record,) = read_records(sweep, [CONDITION.condition_id, "0" * 12])
    assert (record.status, record.error) == ("failed", error)
    assert sweep.child("conditions", CONDITION.condition_id).read_text(ERROR) == "Traceback ...\n"


def test_a_finished_condition_is_taken_over(sweep: Storage, tmp_path: Path) -> None:
    origin = ConditionFolder(sweep, CONDITION.condition_id)
    origin.write_condition(CONDITION)
    origin.write_record(blank_record(CONDITION, 3))
    taken = ConditionFolder(Storage.open(tmp_path / "two"), CONDITION.condition_id)
    taken.take_over(origin)
    assert taken.mended(CONDITION) is not None


def test_sweeps_of_a_storage(tmp_path: Path) -> None:
    for name in ("b", "a"):
        SweepFolder(Storage.open(tmp_path / name)).write_info(SweepInfo(name, name))
    (tmp_path / "no-sweep").mkdir()
    assert [sweep.name for sweep in sweeps_in(Storage.open(tmp_path))] == ["a", "b"]


def test_every_model_is_labelled() -> None:
    assert warning_for(CONDITION) == POISONED_WARNING
    assert "backdoor" in POISONED_WARNING
    assert warning_for(CONDITION.baseline()) == BASELINE_NOTE
