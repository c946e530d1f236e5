"""The records of many conditions: read with few requests (`bdray.store.record_index`), and verified."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from bdray.condition import Condition
from bdray.record import ErrorRecord, Status, TrialRecord
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import CONDITION, RECORD
from bdray.store.record_index import MOST, WORTH_IT, RecordCopy, RecordIndex, Stamp
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder

GRAIN_S = 2.0


def read_record(sweep: Storage, condition_id: str) -> TrialRecord | None:
    """The record of a condition; None where there is none (yet), or none that can be trusted."""
    kept = ConditionFolder(sweep, condition_id).record()
    return None if kept is None else kept.record


def with_answers(sweep: Storage, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The records with what their models were asked: a file each, where there are any."""

    def answered(record: TrialRecord) -> TrialRecord:
        found = ConditionFolder(sweep, record.condition_id).answered()
        return record.model_copy(update=dict(found)) if found.questions else record

    return list(sweep.each(answered, records)) if SweepFolder(sweep).info().detect else list(records)


class RecordHead(NamedTuple):
    """How a condition ended."""

    condition_id: str
    status: Status
    finished_ms: int
    error: ErrorRecord | None = None


def read_records(sweep: Storage, only: Sequence[str] | None = None) -> list[TrialRecord]:
    """The records of `only` (in that order), or all there are, sorted by id. Damaged ones are said and left out."""
    names, gathered, copies = _known(sweep, only)
    found = gathered.read(copies.values())
    read = _read_and_gather(sweep, gathered, [name for name in names if name not in found])
    found.update((record.condition_id, record) for record in read)
    return [found[name] for name in names if name in found]


def read_heads(
    sweep: Storage, only: Sequence[str] | None = None, there: Sequence[str] | None = None
) -> list[RecordHead]:
    """How the conditions of `only` (in that order) or all there are ended: `read_records` where no more is needed.

    Args:
        there: `SweepFolder.condition_ids`, where it has been asked already.
    """
    names, gathered, copies = _known(sweep, only, there)
    found = {name: RecordHead(name, "finished", copy.finished_ms) for name, copy in copies.items()}
    for record in _read_and_gather(sweep, gathered, [name for name in names if name not in found]):
        found[record.condition_id] = RecordHead(record.condition_id, record.status, record.finished_ms, record.error)
    return [found[name] for name in names if name in found]


def _known(
    sweep: Storage, only: Sequence[str] | None, there: Sequence[str] | None = None
) -> tuple[list[str], RecordIndex, dict[str, RecordCopy]]:
    """The conditions asked for that have a folder, and the copies of their records that count."""
    there = SweepFolder(sweep).condition_ids() if there is None else there
    known = set(there)
    names = list(there) if only is None else [name for name in only if name in known]
    gathered = RecordIndex(sweep)

    def counts(name: str, copy: RecordCopy) -> bool:
        stamp = copy.files.get(RECORD)
        return not is_local or (stamp is not None and sweep.stamp(f"conditions/{name}/{RECORD}") == stamp)

    is_local, copies = sweep.is_local, gathered.copies
    copies = {name: copy for name in names if (copy := copies.get(name)) is not None and counts(name, copy)}
    return names, gathered, copies


def _read_and_gather(sweep: Storage, gathered: RecordIndex, names: Sequence[str]) -> list[TrialRecord]:
    """Records, read one by one; enough of them are gathered for the next reader."""

    def read(name: str) -> _Verified | None:
        folder = ConditionFolder(sweep, name)
        stamp = folder.storage.stamp(RECORD)
        kept = folder.record()
        return None if kept is None else (kept.record, {} if stamp is None else {RECORD: stamp})

    return _gathering(sweep, gathered, names, read)


_Verified = tuple[TrialRecord, Mapping[str, Stamp]]
"""A record, and the stamps of the files that were verified."""


def _gathering(
    sweep: Storage,
    gathered: RecordIndex,
    names: Sequence[str],
    read: Callable[[str], _Verified | None],
    stale: Collection[str] = (),
) -> list[TrialRecord]:
    """What `read` finds of each of `names`, gathered part by part: what is read of a large sweep is never held whole.

    Args:
        stale: conditions whose copies are of other files than are there.
    """
    records: list[TrialRecord] = []
    for start in range(0, len(names), MOST) or [0]:
        found = [each for each in sweep.each(read, names[start : start + MOST]) if each is not None]
        small = _gather(gathered, found, stale if start == 0 else ())
        records += [small.get(record.condition_id, record) for record, _ in found]
    return records


def _gather(gathered: RecordIndex, read: Sequence[_Verified], stale: Collection[str]) -> Mapping[str, TrialRecord]:
    """Copy finished records, if there are enough of them; see `RecordIndex.add`."""
    # A file that is written twice within the clock's grain may look the same.
    before = time.time() - GRAIN_S
    settled = [
        (RecordCopy(record.condition_id, record.finished_ms, files), record)
        for record, files in read
        if record.status == "finished" and all(modified_s < before for _, modified_s in files.values())
    ]
    return gathered.add(settled, stale) if stale or len(settled) >= WORTH_IT else {}


def forget_deleted(sweep: Storage) -> None:
    """To be called before conditions are run: drops the copies of records whose conditions' folders were deleted. In an
    object store they would count again as soon as there is such a folder."""
    if sweep.is_local:
        return
    gathered = RecordIndex(sweep)
    if deleted := gathered.copies.keys() - set(SweepFolder(sweep).condition_ids()):
        gathered.add([], deleted)


def statuses_of_intact(sweep: Storage, conditions: Sequence[Condition]) -> dict[str, Status]:
    """How those of `conditions` ended that have an intact record, by id; what can be written again for them is.

    All files of a condition are verified (`ConditionFolder.mended`), but for those that look (size, time) as they did
    when they last were.
    """
    there = set(SweepFolder(sweep).condition_ids())
    wanted = {condition.condition_id: condition for condition in conditions if condition.condition_id in there}
    if not wanted:
        return {}
    stamps, gathered = _stamps(sweep, list(wanted)), RecordIndex(sweep)
    copies = {name: copy for name, copy in gathered.copies.items() if name in wanted}
    whole = {
        name for name, copy in copies.items() if CONDITION in copy.files and copy.files.items() <= stamps[name].items()
    }

    def mend(name: str) -> _Verified | None:
        kept = ConditionFolder(sweep, name).mended(wanted[name])
        if kept is None:
            return None
        return kept.record, {
            file: stamps[name][file] for file in (RECORD, CONDITION, *kept.files) if file in stamps[name]
        }

    left = [name for name in wanted if name not in whole]
    found = _gathering(sweep, gathered, left, mend, stale=copies.keys() - whole)
    statuses = {record.condition_id: record.status for record in found} | dict.fromkeys(whole, "finished")
    return {name: statuses[name] for name in wanted if name in statuses}


def _stamps(sweep: Storage, names: Sequence[str]) -> dict[str, dict[str, Stamp]]:
    """Sizes and times of the files of conditions."""
    stamps: dict[str, dict[str, Stamp]] = {name: {} for name in names}
    if len(names) < WORTH_IT:
        each = sweep.each(lambda name: sweep.child("conditions", name).files(), names)
        return {
            name: {file.path: (file.size, file.modified_s) for file in files}
            for name, files in zip(names, each, strict=True)
        }
    for file in sweep.child("conditions").files():
        name, _, path = file.path.partition("/")
        if name in stamps:
            stamps[name][path] = (file.size, file.modified_s)
    return stamps
