"""Gathered records: the same as read one by one, few requests, and no copy that counts for another record."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_up import rates, record, stage
from remote_storage import as_remote

from bdray.condition import Condition
from bdray.record import EpochRecord, ErrorRecord, TrialRecord
from bdray.store.condition_folder import ConditionFolder, write_failure
from bdray.store.record_index import RecordIndex
from bdray.store.records import GRAIN_S, forget_deleted, read_heads, read_records, statuses_of_intact
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from benchmarks.slow_store import SlowStore, slow_store

MakeRecord = Callable[..., TrialRecord]

WORTH_IT, COUNT = 10, 15
CONDITIONS = [
    Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch", "seed": seed}) for seed in range(COUNT)
]
IDS = [condition.condition_id for condition in CONDITIONS]


@pytest.fixture(autouse=True)
def _few_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdray.store.records.WORTH_IT", WORTH_IT)


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


@pytest.fixture
def made(make_record: MakeRecord) -> list[TrialRecord]:
    """Of all that a record can say, other numbers in each."""
    details = {"lambda": 0.5, "pruned": [1, 2]}
    found = []
    for number in range(COUNT):
        epochs = [EpochRecord(epoch=k, loss=k / 3 + number, rates=rates(k / 20), images=9) for k in range(11)]
        attack = {"trigger": "patch"} if number else {"trigger": None, "rate": 0.0}
        one = make_record((0.9, 0.1), seed=number, **attack)
        stages = (stage(*epochs), stage(*epochs[:6], name="finetune", details=details, environment={"threads": 1}))
        found.append(one.model_copy(update={"stages": stages, "warning": "poisoned"}))
    return found


def gathered(sweep: Storage, records: list[TrialRecord]) -> list[TrialRecord]:
    for one in records:
        ConditionFolder(sweep, one.condition_id).write_record(one)
    age(Path(sweep.uri))
    read_records(sweep)
    assert len(RecordIndex(sweep).copies) == len(records)
    return read_records(sweep, [one.condition_id for one in records])


def test_a_gathered_record_says_all_that_it_said(made: list[TrialRecord], tmp_path: Path) -> None:
    found = gathered(Storage.open(tmp_path / "one"), made)
    assert found == made
    assert [one.model_dump_json() for one in found] == [one.model_dump_json() for one in made], "in the same order"
    assert [list(one.flat.items()) for one in found] == [list(one.flat.items()) for one in made]


def test_what_gathered_records_say_alike_is_there_once(made: list[TrialRecord], tmp_path: Path) -> None:
    """A record took 50 KB of memory when each had all that it says to itself."""
    sweep = Storage.open(tmp_path / "one")
    first, second = gathered(sweep, made)[1:3]
    assert first.condition["train"] is second.condition["train"]
    assert first.data is second.data
    assert first.stages[0].environment is second.stages[0].environment
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = read_records(sweep)
        each = (tracemalloc.get_traced_memory()[0] - before) / len(found)
    finally:
        tracemalloc.stop()
    numbers = 8 * sum(len(one.epochs) * len(one.epochs.COLUMNS) for one in first.stages)
    assert each < numbers + 7_000, "its numbers, and what holds them"


def test_a_large_sweep_has_several_segments(
    made: list[TrialRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("bdray.store.records.MOST", "bdray.store.record_index.MOST"):
        monkeypatch.setattr(place, 6)
    monkeypatch.setattr("bdray.store.records.WORTH_IT", 2)
    sweep = Storage.open(tmp_path / "one")
    assert gathered(sweep, made) == made
    sizes = Counter(copy.segment for copy in RecordIndex(sweep).copies.values())
    assert sorted(sizes.values()) == [3, 6, 6]
    assert len(list(Path(sweep.uri, "records").iterdir())) == 2 * len(sizes)


def test_copies_of_another_version_do_not_count(
    made: list[TrialRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Storage.open(tmp_path / "one")
    gathered(sweep, made)
    monkeypatch.setattr("bdray.store.record_index.FORM", "another")
    assert RecordIndex(sweep).copies == {}
    assert gathered(sweep, made) == made
    assert len(list(Path(sweep.uri, "records").iterdir())) == 2, "what nobody of this version reads is deleted"


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


@pytest.mark.parametrize("deleted", [IDS[4:5], IDS])
def test_no_copy_of_a_deleted_condition_counts_for_its_next_run(
    sweep: Storage, deleted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: in an object store the condition was run again, and tables still had the record that was deleted."""
    far = as_remote(sweep.uri, monkeypatch)
    statuses_of_intact(far, CONDITIONS)
    for name in deleted:
        far.delete_folder(f"conditions/{name}")
    forget_deleted(far)
    assert not statuses_of_intact(far, CONDITIONS).keys() & set(deleted), "it is run again"
    write_failure(far, CONDITIONS[4], ErrorRecord(kind="ValueError", message="no"), started_ms=1, detail="no")
    assert [head.status for head in read_heads(far, [IDS[4]])] == ["failed"]
    assert [record.status for record in read_records(far, [IDS[4]])] == ["failed"]


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
        time.sleep(GRAIN_S + 1)  # Its times are whole seconds, and cannot be set.
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
