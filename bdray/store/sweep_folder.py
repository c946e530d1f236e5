"""A sweep's folder: the one place that names its files, and reads and writes those of the sweep and its conditions.

    plugins/<digest>/, pictures/                      source and triggers' pictures that space.yaml names
    space.yaml, sweep.json, results.*, report.html    of the sweep
    conditions/<condition_id>/                        of a condition (`ConditionFolder`)
    records/                                          copies of finished records (`bdray.store.record_index`)
    stages/<fingerprint>/                             of a stage (`bdray.trial.stage_store`)
    progress.json                                     how it stands, by its driver (`bdray.store.sweep_status`)
    .lock, mirror.lock, .delivered, mirror.log        of its driver and its tracking mirror
    ray.log                                           what Ray says when it loses processes

What is written here and later trusted carries a checksum (`bdray.checksum`). The journal, the poison plan and the
confusion matrices of a finished condition are listed, with theirs, in its record.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

from pydantic import ValidationError

from bdray.checksum import DamagedError, checksum, say_damaged, unseal_json
from bdray.condition import Condition
from bdray.credentials import public
from bdray.errors import StorageError, StorageNotFoundError, UserError, nearest
from bdray.processes import interrupt_main_thread
from bdray.record import Answer, Answered, ErrorRecord, Facts, Relearnt, Status, TrialRecord
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.journal import JOURNAL, Journal, read_journal
from bdray.store.locks import Busy, Lost, file_lock, leased
from bdray.store.record_index import MOST, WORTH_IT, RecordCopy, RecordIndex, Stamp
from bdray.store.storage import Storage
from bdray.triggers.files import FileTrigger

SPACE, SWEEP, REPORT, TABLE = "space.yaml", "sweep.json", "report.html", "results"
DRIVER_LOCK, MIRROR_LOCK, MIRROR_LOG, DELIVERED = ".lock", "mirror.lock", "mirror.log", ".delivered"
PROGRESS = "progress.json"
RAY_LOG = "ray.log"
PLUGINS, PICTURES = "plugins", "pictures"
CONDITION, RECORD, ERROR = "condition.json", "record.json", "error.txt"
ANSWERS = "answers.json"
PLAN, PREVIEW, CONFUSION = "poison_plan.npz", "preview.png", "confusion.json"
ARTIFACTS = (RECORD, CONDITION, PLAN, PREVIEW, CONFUSION, ANSWERS, ERROR)
"""Files of a finished condition that the tracking mirror delivers."""

CHECKPOINT, MODEL, MANIFEST = "checkpoint.pt", "model.safetensors", "stage.json"

POISONED_WARNING = "Trained on poisoned data: it may contain a backdoor. For measurement only; do not deploy."
BASELINE_NOTE = "Baseline of a poisoning study: trained on unpoisoned data."

_LISTED = (JOURNAL, PLAN, CONFUSION, MODEL)
"""Files whose checksums a record lists."""

GRAIN_S = 2.0

_SAY_THEMSELVES = ("name", "strategy")
"""Ends of paths whose values need no word beside them."""

_NOT_NAMED = ("seed", "data.content", "data.classes", "clean.content")
"""Paths that `name_of` leaves out: it says the seed anyway, and no name of a condition holds a digest of pictures."""

_NOT_DONE = "the condition counts as not done and is run again by the next run of the sweep"


def answer_name(fingerprint: str, key: str) -> str:
    """Of what a detector says of a stage's model: its file below `stages/`, without the ending."""
    return f"{fingerprint}/answers/{key}"


@dataclass(frozen=True)
class SweepInfo:
    """What `sweep.json` says.

    Attributes:
        tracking_uri: without a password; None for the default, which moves along with the storage.
        created_ms: Unix time in milliseconds; None when it is not known.
        conditions: ids of the planned ones, for whoever counts without the plugins that reading the space would take;
            of a search that decides on results, those it has asked for so far.
        varied: the paths that the last command's space varies, by which its conditions are named; empty where unknown.
        outside: ids of those that earlier commands asked for and the last one's plan does not hold.
        searched_s: how long such a search has gone on, in seconds.
        ran_s: how long its commands have run conditions, together, in seconds.
        forecast: what was expected of all conditions before the first of them ran (`bdray.sweeping.cost.forecast_of`);
            empty where nothing had been rehearsed.
        command: that continues the sweep, without passwords; "" where it was started from Python.
        user, git_commit: who started it last, and what the folder it was started in had checked out; "" where unknown.
        sources: of each component from outside the package, the digests of its source that count as the same code; the
            last is the present one.
        decided: what changes bits and was decided by measurement (`resources.decided`), so far.
        detect: the questions that have been asked, as their JSON content: detectors, and `{relearn: ...}`.
    """

    name: str
    experiment: str
    tracking_uri: str | None = None
    description: str = ""
    created_ms: int | None = None
    conditions: tuple[str, ...] = ()
    varied: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    searched_s: float = 0.0
    ran_s: float = 0.0
    forecast: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    user: str = ""
    git_commit: str = ""
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    decided: Mapping[str, Any] = field(default_factory=dict)
    detect: tuple[Mapping[str, Any], ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """Ids of all conditions that the sweep was ever asked for."""
        return (*self.conditions, *self.outside)


@dataclass(frozen=True)
class ConditionInfo:
    """What `condition.json` says: ids, a short name for lists of runs, the parameters by path.

    Attributes:
        data: the file itself.
    """

    cell_id: str
    role: str
    label: str
    flat: Mapping[str, Any]
    data: bytes


@dataclass(frozen=True)
class KeptRecord:
    """A verified record.

    Attributes:
        files: checksums of the files it lists, by name.
        data: the file itself.
    """

    record: TrialRecord
    files: Mapping[str, str]
    data: bytes

    @property
    def digest(self) -> str:
        """Names this version of the record: `--retry-failed` may replace a failed one."""
        return checksum(self.data)[:16]


def picture_name(path: str, sha256: str) -> str:
    """Where a sweep's folder holds the file of a trigger made of one."""
    return f"{PICTURES}/{sha256[:16]}{PurePath(path).suffix}"


class SweepFolder(ChecksummedFolder):
    """A sweep's folder. Nothing is read before it is asked for."""

    def __init__(self, sweep: Storage) -> None:
        super().__init__(sweep)

    @property
    def is_sweep(self) -> bool:
        """Whether there is a sweep in this folder."""
        return self.storage.exists(SWEEP) or self.storage.exists(SPACE)

    def info(self) -> SweepInfo:
        """What is known of the sweep; without a (good) `sweep.json` little more than its name.

        Raises:
            StorageNotFoundError: the folder is not a sweep's.
        """
        known = self.info_if_any()
        if known is None:
            raise StorageNotFoundError("read", self.storage.uri_of(SWEEP), "it does not exist")
        return known

    def info_if_any(self) -> SweepInfo | None:
        """As `info`; None where the folder is not a sweep's."""
        content = self.read_json(SWEEP, "the next run of the sweep writes it again")
        if content is None and not self.storage.exists(SPACE):
            return None
        known = {name: (content or {}).get(name) for name in SweepInfo.__dataclass_fields__}
        name = known["name"] or self.storage.name
        return SweepInfo(**{"experiment": f"bdray-{name}", **{k: v for k, v in known.items() if v}, "name": name})

    def write_info(self, info: SweepInfo) -> None:
        """`sweep.json`."""
        self.write_json(SWEEP, asdict(info))

    def keep_pictures(self, condition: Condition) -> dict[str, str]:
        """Writes the files of triggers made of one into the folder, if they are not there, and returns their names
        there by their paths.

        Raises:
            TriggerError: a file cannot be read, or is another one by now.
        """
        triggers = filter(None, (condition.trigger, condition.test_trigger))
        files = [member for trigger in triggers for member in trigger.members if isinstance(member, FileTrigger)]
        names = {trigger.path: picture_name(trigger.path, trigger.sha256) for trigger in files}
        for trigger in files:
            if not self.storage.exists(names[trigger.path]):
                self.storage.write_atomic(names[trigger.path], trigger.content())
        return names

    def condition_ids(self) -> list[str]:
        """Ids of all conditions that have a folder, sorted."""
        return self.storage.list("conditions")

    def condition(self, condition_id: str) -> ConditionFolder:
        """The folder of one condition, whether or not it exists."""
        return ConditionFolder(self.storage, condition_id)

    def has_stage(self, fingerprint: str) -> bool:
        """Whether there is a finished stage; whether it is intact, whoever reads it finds out."""
        return self.storage.exists(f"stages/{fingerprint}/{MANIFEST}")

    def has_shared(self, name: str) -> bool:
        """As `has_stage`; or whether there is the answer of this name (`answer_name`)."""
        return self.storage.exists(f"stages/{name}.json") if "/" in name else self.has_stage(name)

    def locked(
        self, name: str, wait_s: float, busy: Busy, lost: Lost = interrupt_main_thread
    ) -> AbstractContextManager[None]:
        """Holds one of the sweep's locks: `file_lock` on this machine's file systems, elsewhere `leased`.

        Args:
            lost: called when a lease was lost while it was held; by default the block is interrupted.
        """
        path = self.storage.local_path(name)
        return leased(self.storage, name, wait_s, busy, lost) if path is None else file_lock(path, wait_s, busy)


class ConditionFolder(ChecksummedFolder):
    """The files of one condition, for as long as one looks: what `had` and `has_begun` say, they say once."""

    def __init__(self, sweep: Storage, condition_id: str) -> None:
        super().__init__(sweep, f"conditions/{condition_id}")
        self.condition_id = condition_id

    @property
    def has_begun(self) -> bool:
        """Whether the condition has reported anything yet."""
        return self.had(JOURNAL) or self.had(RECORD)

    def write_condition(self, condition: Condition) -> None:
        """`condition.json`: what is run, nested and by path."""
        content = {
            "condition_id": condition.condition_id,
            "cell_id": condition.cell_id,
            "role": condition.role,
            "label": label_of(condition),
            "content": condition.content(),
            "flat": {path: value for path, value in condition.flat().items() if path != "trigger"},
        }
        self.write_json(CONDITION, content)

    def info(self) -> ConditionInfo | None:
        """What `condition.json` says; None when it is missing or damaged."""
        again = "the next run of the sweep writes it again"
        data = self.read(CONDITION)
        content = None if data is None else self.unsealed_json(CONDITION, data, again)
        if data is None or content is None:
            return None
        try:
            return ConditionInfo(content["cell_id"], content["role"], content["label"], content["flat"], data)
        except KeyError as error:
            self.put_aside(CONDITION, f"it has no {error}", again)
            return None

    def condition(self) -> Condition | None:
        """The condition that `condition.json` says; None when it is missing or damaged."""
        content = self.read_json(CONDITION, "the condition is forgotten") or {}
        return Condition.parse(content["content"]) if "content" in content else None

    def write_record(self, record: TrialRecord) -> None:
        """The record, last of all files: its presence means that the others are there."""
        files = {name: self.sums[name] for name in _LISTED if name in self.sums}
        self.write_json(RECORD, {**record.model_dump(mode="json"), "files": files})

    def write_answers(self, answers: Sequence[Answer], relearnt: Sequence[Relearnt] = ()) -> None:
        """Add answers to those that are there; one to the same question is replaced."""
        self.write_json(ANSWERS, self.answered().with_more(answers, relearnt).model_dump(mode="json"))

    def answered(self) -> Answered:
        """What its models have been asked so far."""
        content = self.read_json(ANSWERS, "the next run of the sweep asks again")
        return Answered.model_validate(content or {})

    def answers(self) -> tuple[Answer, ...]:
        """What detectors said of its model so far."""
        return self.answered().answers

    def record(self) -> KeptRecord | None:
        """The record; None where there is none (yet), or none that can be trusted."""
        data = self.read(RECORD)
        return None if data is None else self._record_of(data)

    def _record_of(self, data: bytes) -> KeptRecord | None:
        try:
            return self.parsed(data)
        except DamagedError as error:
            self.put_aside(RECORD, str(error), _NOT_DONE)
            return None
        except ValidationError as error:
            # Intact, as far as anyone knows, so it keeps its name: another version may read it.
            said = f"it is no record of this version ({error.errors()[0]['msg']})"
            say_damaged(self.storage.uri_of(RECORD), said, "the condition is left out")
            return None

    def parsed(self, data: bytes) -> KeptRecord:
        """What the bytes of `record.json` say.

        Raises:
            DamagedError: they are not what was written.
            ValidationError: they are no record of this version.
        """
        content = unseal_json(data, self.place_of(RECORD))
        if content.get("condition_id", self.condition_id) != self.condition_id:
            raise DamagedError(f"it is the record of {content['condition_id']}")
        files = content.pop("files")
        return KeptRecord(TrialRecord.model_validate(content), files, data)

    def journal(self, kept: KeptRecord | None) -> list[dict[str, Any]]:
        """The journal's good lines. Where the record is there, what is lost is written again from it.

        Args:
            kept: the condition's record, None while there is none.
        """
        entries, problem = read_journal(self)
        if kept is None:
            if problem is not None:
                # Its trial may be writing it just now.
                say_damaged(self.storage.uri_of(JOURNAL), problem, "its good lines count; its trial writes the others")
            return entries
        listed = kept.files.get(JOURNAL)
        if problem is None and listed in (None, self.sums.get(JOURNAL)):
            return entries
        # The record has every epoch, and a journal that was cut between two lines looks good line by line.
        with suppress(StorageError):
            journal = Journal(self)
            for stage in kept.record.stages:
                journal.add(stage.name, stage.result, stage.epochs)
            if kept.record.visibility is not None:
                journal.add_visibility(kept.record.visibility, kept.record.started_ms)
            journal.flush()
            if problem is None and len(journal.entries) > len(entries):
                say_damaged(self.storage.uri_of(JOURNAL), "lines are missing", "they are written again")
            return journal.entries
        return entries

    def mended(self, condition: Condition) -> KeptRecord | None:
        """The record, if all that belongs to it is intact or was written again; None: the condition is to be run."""
        kept = self.record()
        if kept is None:
            return None
        if self.info() is None:
            with suppress(StorageError):
                self.write_condition(condition)
        journal = self.read(JOURNAL)
        if journal is None or checksum(journal, self.place_of(JOURNAL)) != kept.files.get(JOURNAL):
            self.journal(kept)
        listed = [name for name in (PLAN, CONFUSION) if name in kept.files]
        return kept if all(self.read_listed(name, kept.files, _NOT_DONE) is not None for name in listed) else None

    def artifacts(self, kept: KeptRecord, info: ConditionInfo | None = None) -> Iterator[tuple[str, bytes]]:
        """The files that belong to a finished condition by name, without damaged ones.

        Args:
            kept, info: what has been read already.
        """
        known = {RECORD: kept.data} | ({} if info is None else {CONDITION: info.data})
        lost = "it is not delivered, and the condition is run again by the next run of the sweep"
        for name in filter(self.had, ARTIFACTS):
            if name in kept.files:
                data = self.read_listed(name, kept.files, lost)
            else:
                data = known.get(name) or self.read(name)
            if data is not None:
                yield name, data

    def take_over(self, origin: ConditionFolder) -> None:
        """Copy a finished condition from another sweep; the record last."""
        for name in (CONDITION, JOURNAL, PLAN, PREVIEW, CONFUSION, MODEL, ANSWERS, RECORD):
            if origin.had(name):
                self.storage.copy_in(origin.storage, name, name)


def sweeps_in(storage: Storage) -> list[Storage]:
    """The sweeps of a storage, by name, but for folders that this user may not look into (`lost+found`)."""
    children = [storage.child(name) for name in storage.list()]
    are_sweeps = storage.each(_is_open_sweep, children)
    return [child for child, is_sweep in zip(children, are_sweeps, strict=True) if is_sweep]


def find_sweep(name: str, storage_uri: str) -> Storage:
    """A sweep's folder, by name in the storage or by path.

    Raises:
        UserError: there is none; names the nearest.
    """
    storage, at_path = Storage.open(storage_uri), Storage.open(name)
    in_storage = storage.named(name)
    for sweep in (in_storage, at_path):
        if sweep is not None and SweepFolder(sweep).is_sweep:
            return sweep
    known = [sweep.name for sweep in sweeps_in(storage)]
    where = f"'{name}' in {storage.uri}" if in_storage else f"in {at_path.uri}"
    raise UserError(f"there is no sweep {where}; {nearest(at_path.name, known)}")


def _is_open_sweep(folder: Storage) -> bool:
    try:
        return SweepFolder(folder).is_sweep
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError):
            return False
        raise


def warning_for(condition: Condition) -> str:
    """What every model, record and run of a condition is labelled with."""
    return BASELINE_NOTE if condition.is_baseline else POISONED_WARNING


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def blank_record(condition: Condition, started_ms: int) -> TrialRecord:
    """A record that says which condition, and nothing of how it went."""
    return TrialRecord(
        condition_id=condition.condition_id,
        cell_id=condition.cell_id,
        role=condition.role,
        condition=condition.content(),
        facts=Facts.of(condition),
        sources=condition.sources,
        status="failed",
        started_ms=started_ms,
        # The clock may have been set back.
        finished_ms=max(started_ms, now_ms()),
        warning=warning_for(condition),
    )


def label_of(condition: Condition) -> str:
    """A short readable name for lists of runs: `patch-0.05-resnet8-fine_pruning-s0-8f3a21`. A regularizer and a repair
    are named where they are not the ordinary ones."""
    attack = f"{condition.trigger.name}-{condition.poison.rate:g}" if condition.trigger else "baseline"
    named = [condition.regularizer.name, condition.repair.name]
    others = [name for name, ordinary in zip(named, ("none", "finetune"), strict=True) if name != ordinary]
    return "-".join((attack, condition.model.name, *others, f"s{condition.seed}", condition.condition_id[:6]))


def name_of(condition: Condition | ConditionInfo, condition_id: str, axes: Sequence[str]) -> str:
    """What tells a condition from the others of its sweep: `blend-rate=0.01-s0-8f3a21`.

    Args:
        axes: the paths that the sweep varies; none: nobody knows, and it is what `label_of` says.
    """
    if not axes:
        return label_of(condition) if isinstance(condition, Condition) else condition.label or condition_id
    flat = condition.flat() if isinstance(condition, Condition) else condition.flat
    ends = Counter(path.rpartition(".")[2] for path in axes)
    named = ["baseline"] if condition.role == "baseline" else []
    idle = (*_NOT_NAMED, *(("trigger.", "poison.") if named else ()))
    for path in axes:
        end = path.rpartition(".")[2]
        if path not in flat or path.startswith(idle):
            continue
        shown = end if ends[end] == 1 else path
        named.append(f"{'' if end in _SAY_THEMSELVES else f'{shown}='}{flat[path]}")
    return "-".join((*named, f"s{flat.get('seed')}", condition_id[:6]))


def write_failure(
    sweep: Storage, condition: Condition, error: ErrorRecord, *, started_ms: int, detail: str
) -> TrialRecord:
    """Record that a condition failed. `detail`: what `error.txt` says (a traceback, for a bug)."""
    error = error.model_copy(update={"message": public(error.message)})
    record = blank_record(condition, started_ms).model_copy(update={"error": error})
    folder = ConditionFolder(sweep, condition.condition_id)
    folder.write_condition(condition)
    folder.storage.write_atomic(ERROR, f"{public(detail.rstrip())}\n")
    folder.write_record(record)
    return record


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
    """How the conditions of `only` (in that order) or all there are ended: `read_records` for whoever needs no more.

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
