"""A condition's folder: what its files say, whose record a record is, and what its models are labelled with."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdray.condition import Condition
from bdray.record import ErrorRecord
from bdray.store.condition_folder import ConditionFolder, blank_record, write_failure
from bdray.store.file_names import ERROR
from bdray.store.labels import BASELINE_NOTE, POISONED_WARNING, warning_for
from bdray.store.records import read_records
from bdray.store.storage import Storage

CONDITION = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch"})


@pytest.fixture
def sweep(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "one")


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


def test_every_model_is_labelled() -> None:
    assert warning_for(CONDITION) == POISONED_WARNING
    assert "backdoor" in POISONED_WARNING
    assert warning_for(CONDITION.baseline()) == BASELINE_NOTE
