"""What a sweep in an object store asks of it, counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import made_up
import pytest
from waiting import HANG_S

from bdray.condition import Condition
from bdray.record import EpochRecord
from bdray.store.condition_folder import ConditionFolder, blank_record
from bdray.store.journal import Journal, read_journal
from bdray.store.records import read_records, statuses_of_intact
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.reuse import adopt
from bdray.trial import TrialOptions, run_trial
from benchmarks.slow_store import SMALL, SlowStore, of_conditions, requests_of_a_sweep, slow_store

CONDITION = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch"})

AGAIN_AND_AGAIN = re.compile(
    r"/(\.lock|mirror\.lock|progress\.json|(conditions|stages)/\w+/(journal\.jsonl|checkpoint\.pt|condition\.json))"
    r"|(list-type=2&max-keys=1000&prefix=\S+conditions%2F(\w+%2F)?(?!\S))"
)
"""What is asked for as long as a sweep lasts, however little it does: leases, progress, checkpoints, and the mirror's
looks at the conditions that there are, and at one that runs."""


@pytest.fixture(scope="module")
def store() -> Iterator[SlowStore]:
    with slow_store() as store:
        yield store


@pytest.mark.system
@pytest.mark.long
def test_a_trained_condition_takes_few_requests_and_has_the_numbers_of_any_other(
    store: SlowStore, tmp_path: Path
) -> None:
    lines = requests_of_a_sweep(store, tmp_path)
    lasting = [line for line in lines if not AGAIN_AND_AGAIN.search(line)]
    kinds = Counter(re.sub(r"[0-9a-f]{12}", "ID", line.removesuffix(" HTTP/1.1")) for line in lasting)
    assert len(of_conditions(lasting)) < 30 * SMALL, kinds.most_common()
    assert len(lasting) - len(of_conditions(lasting)) < 80, f"what a sweep asks once: {kinds.most_common()}"
    reads = Counter(line for line in lasting if line.startswith("GET") and "/conditions/" in line and "?" not in line)
    # The mirror reads each file once; records also for the parent run, by the driver for its table and, where the sweep
    # lasts until the watcher of the time left looks (which hangs on the machine), by that; pictures for the page.
    most = {"record.json": 4, "preview.png": 2}
    often = {
        line: n for line, n in reads.items() if n > max((k for name, k in most.items() if name in line), default=1)
    }
    assert not often
    records = read_records(Storage.open(store.uri("runs/small")))
    assert len(records) == SMALL
    for record in records[:2]:
        again = run_trial(Condition.parse(record.condition), options=TrialOptions(threads=1))
        assert [stage.epochs[-1].rates for stage in again.stages] == [s.epochs[-1].rates for s in record.stages]


def test_a_large_file_is_one_read_and_a_copy_is_the_stores_own(store: SlowStore) -> None:
    runs = Storage.open(store.uri("copies"))
    runs.write_atomic("one/model", b"m" * (3 << 20))
    store.lines.clear()
    runs.child("two").copy_in(runs.child("one"), "model", "model")
    assert not any(line.startswith("GET") for line in store.lines)
    store.lines.clear()
    assert runs.read_bytes("two/model") == b"m" * (3 << 20)
    assert store.requests == {"HEAD": 1, "GET": 1}


def test_what_another_sweep_has_finished_is_verified_and_copied_side_by_side(store: SlowStore) -> None:
    runs = Storage.open(store.uri("adopting"))
    conditions = [Condition.parse({**CONDITION.content(), "seed": seed}) for seed in range(12)]
    first, second = runs.child("first"), runs.child("second")
    for condition in conditions:
        folder = ConditionFolder(first, condition.condition_id)
        folder.write_condition(condition)
        folder.write("poison_plan.npz", b"plan")
        folder.write_record(made_up.record(condition))
    SweepFolder(first).write_info(SweepInfo("first", "first"))
    damaged, failed = conditions[0], conditions[1]
    first.write_atomic(f"conditions/{damaged.condition_id}/poison_plan.npz", b"plan!")
    ConditionFolder(first, failed.condition_id).write_record(blank_record(failed, 5))
    store.lines.clear()
    adopted = adopt(second, runs, conditions)
    assert set(adopted) == {condition.condition_id for condition in conditions[2:]}
    assert len(store.lines) <= 20 * len(conditions)
    assert statuses_of_intact(second, conditions) == dict.fromkeys(adopted, "finished")


def test_a_compressed_file_is_stored_as_it_is(store: SlowStore) -> None:
    runs = Storage.open(store.uri("compressed"))
    runs.write_atomic("segment.gz", b"seven b")
    assert [(file.path, file.size) for file in runs.files()] == [("segment.gz", 7)]
    assert runs.read_bytes("segment.gz") == b"seven b"


def test_a_journal_far_away_is_written_now_and_then_and_whole_at_its_end(
    store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bdray.store.journal._PAUSE_S", HANG_S)
    folder = ConditionFolder(Storage.open(store.uri("journals")), CONDITION.condition_id)
    journal = Journal(folder)
    store.lines.clear()
    for number in range(1, 6):
        journal.add("poison", "poisoned", [EpochRecord(epoch=number, loss=1.0, images=1, finished_ms=number)])
    assert store.requests == {"PUT": 1}
    journal.flush()
    journal.flush()
    assert store.requests == {"PUT": 2}
    entries, problem = read_journal(folder)
    assert ([entry["step"] for entry in entries], problem) == ([1, 2, 3, 4, 5], None)
