"""Gathered records: the same as read one by one, few requests, and no copy that counts for another record."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_up import record

from bdray.condition import Condition
from bdray.record import ErrorRecord, TrialRecord
from bdray.store.record_index import RecordIndex
from bdray.store.storage import Storage
from bdray.store.sweep_folder import (
    _GRAIN_S,
    ConditionFolder,
    SweepFolder,
    SweepInfo,
    read_heads,
    read_records,
    statuses_of_intact,
    write_failure,
)
from benchmarks.slow_store import SlowStore, slow_store

WORTH_IT, COUNT = 10, 15
CONDITIONS = [
    Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch", "seed": seed}) for seed in range(COUNT)
]
IDS = [condition.condition_id for condition in CONDITIONS]


@pytest.fixture(autouse=True)
def _few_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdray.store.sweep_folder.WORTH_IT", WORTH_IT)


def fill(sweep: Storage) -> None:
    """A sweep of which all conditions are finished but for one that failed."""
    SweepFolder(sweep).write_info(SweepInfo(sweep.name, sweep.name, conditions=tuple(IDS)))

    def finish(condition: Condition) -> None:
        folder = ConditionFolder(sweep, condition.condition_id)
        folder.write_condition(condition)
        folder.write("poison_plan.npz", b"plan")
        folder.write_record(record(condition, finished_ms=9))

    sweep.each(finish, CONDITIONS[1:])
    write_failure(sweep, CONDITIONS[0], ErrorRecord(kind="ValueError", message="no"), started_ms=1, detail="no")


def age(folder: Path) -> None:
    """As if written an hour ago: what was written a moment ago may be written again and look the same."""
    for path in folder.rglob("*.*"):
        os.utime(path, (time.time() - 3600,) * 2)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "one"
    fill(Storage.open(folder))
    age(folder)
    return folder


@pytest.fixture
def sweep(filled: Path, tmp_path: Path) -> Storage:
    shutil.copytree(filled, tmp_path / "one")
    return Storage.open(tmp_path / "one")


def rewrite(sweep: Storage, condition: Condition, finished_ms: int) -> None:
    ConditionFolder(sweep, condition.condition_id).write_record(record(condition, finished_ms=finished_ms))


def finished_at(records: list[TrialRecord]) -> dict[str, int]:
    return {record.condition_id: record.finished_ms for record in records}


def test_gathered_records_are_the_same(sweep: Storage) -> None:
    one_by_one = read_records(sweep, IDS)
    assert len(RecordIndex(sweep).copies) == COUNT - 1, "all that finished"
    assert read_records(sweep, IDS) == one_by_one
    assert [record.condition_id for record in read_records(sweep)] == sorted(IDS)
    heads = read_heads(sweep, IDS)
    expected = [(record.condition_id, record.status, record.finished_ms, record.error) for record in one_by_one]
    assert [(head.condition_id, head.status, head.finished_ms, head.error) for head in heads] == expected


def test_a_record_changed_behind_its_copy_is_noticed(sweep: Storage) -> None:
    read_records(sweep)
    rewrite(sweep, CONDITIONS[3], finished_ms=77)
    sweep.delete_folder(f"conditions/{IDS[4]}")
    (damaged := Path(sweep.uri, "conditions", IDS[5], "record.json")).write_bytes(b"{}")
    at = finished_at(read_records(sweep))
    assert at[IDS[3]] == 77
    assert IDS[4] not in at
    assert IDS[5] not in at
    assert not damaged.exists(), "put aside"
    assert len(at) == COUNT - 2


@pytest.mark.parametrize("suffix", [".json", ".gz"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "bit"])
def test_a_damaged_or_lost_copy_is_made_again(suffix: str, damage: str, sweep: Storage) -> None:
    before = read_records(sweep, IDS)
    (file,) = Path(sweep.uri, "records").glob(f"*{suffix}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    kept = {"bit": bytes(content), "cut": bytes(content[: len(content) // 2]), "empty": b""}
    file.unlink() if damage == "missing" else file.write_bytes(kept[damage])
    assert read_records(sweep, IDS) == before
    assert len(RecordIndex(sweep).copies) == COUNT - 1
    assert read_records(sweep, IDS) == before


def test_what_is_verified_is_not_read_again_until_it_changes(sweep: Storage) -> None:
    statuses = statuses_of_intact(sweep, CONDITIONS)
    assert statuses == dict.fromkeys(IDS, "finished") | {IDS[0]: "failed"}
    copies = RecordIndex(sweep).copies
    assert set(copies[IDS[1]].files) == {"record.json", "condition.json", "poison_plan.npz"}
    Path(sweep.uri, "conditions", IDS[1], "poison_plan.npz").write_bytes(b"plan!")
    Path(sweep.uri, "conditions", IDS[2], "record.json").unlink()
    Path(sweep.uri, "conditions", IDS[3], "condition.json").unlink()
    again = statuses_of_intact(sweep, CONDITIONS)
    assert statuses.keys() - again.keys() == {IDS[1], IDS[2]}
    assert Path(sweep.uri, "conditions", IDS[3], "condition.json").exists(), "written again"
    assert not {IDS[1], IDS[2]} & RecordIndex(sweep).copies.keys(), "what is run again has no copy that counts"


def test_a_segment_that_another_reader_takes_in_meanwhile_is_not_missing(
    sweep: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Two readers that gather at once: the one has listed what the other deletes."""
    before = read_records(sweep, IDS)
    slow = RecordIndex(sweep)
    listed = list(slow.copies.values())
    for file in sorted(Path(sweep.uri, "records").iterdir(), reverse=True):
        file.unlink()
    assert slow.read(listed) == {}
    assert caplog.text == ""
    assert read_records(sweep, IDS) == before


def test_a_segment_takes_in_others(sweep: Storage) -> None:
    read_records(sweep)
    rewrite(sweep, CONDITIONS[3], finished_ms=77)
    age(Path(sweep.uri, "conditions", IDS[3]))
    statuses_of_intact(sweep, CONDITIONS)
    assert len(list(Path(sweep.uri, "records").iterdir())) == 2
    assert RecordIndex(sweep).copies[IDS[3]].finished_ms == 77
    assert finished_at(read_records(sweep))[IDS[3]] == 77


@pytest.fixture(scope="module")
def store() -> Iterator[SlowStore]:
    with slow_store() as store:
        fill(Storage.open(store.uri("runs/one")))
        time.sleep(_GRAIN_S + 1)  # Its times are whole seconds, and cannot be set.
        yield store


def test_a_sweep_far_away_is_read_by_few_requests(store: SlowStore, sweep: Storage) -> None:
    far = Storage.open(store.uri("runs/one"))
    store.lines.clear()
    first = read_records(far, IDS)
    assert len(store.lines) <= 2 * COUNT + 5
    store.lines.clear()
    assert read_records(far, IDS) == first
    assert len(store.lines) <= 8, "two listings, the segment's two files, and the record of what failed"
    store.lines.clear()
    assert [head.status for head in read_heads(far, IDS)] == ["failed"] + ["finished"] * (COUNT - 1)
    assert len(store.lines) <= 6
    near = finished_at(read_records(sweep, IDS))
    assert {name: ms for name, ms in finished_at(first).items() if name != IDS[0]} == {
        name: ms for name, ms in near.items() if name != IDS[0]
    }
    # Its sizes and times are compared by the next run of the sweep.
    assert len(statuses_of_intact(far, CONDITIONS)) == COUNT
    store.lines.clear()
    assert len(statuses_of_intact(far, CONDITIONS)) == COUNT
    assert len(store.lines) <= 20, "what is verified is not read again"
    rewrite(far, CONDITIONS[7], finished_ms=88)
    assert len(statuses_of_intact(far, CONDITIONS)) == COUNT
    assert finished_at(read_records(far))[IDS[7]] == 88
    far.delete_folder(f"conditions/{IDS[8]}")
    assert IDS[8] not in finished_at(read_records(far))
