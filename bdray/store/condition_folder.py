"""The files of one condition.

What is written here and later trusted carries a checksum (`bdray.checksum`). The journal, the poison plan and the
confusion matrices of a finished condition are listed, with theirs, in its record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bdray.checksum import DamagedError, checksum, say_damaged, unseal_json
from bdray.condition import Condition
from bdray.credentials import public
from bdray.errors import ConditionError, StorageError
from bdray.record import Answer, Answered, ErrorRecord, Facts, Relearnt, TrialRecord, Unmeasured, now_ms
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.file_names import (
    ANSWERS,
    ARTIFACTS,
    CONDITION,
    CONFUSION,
    ERROR,
    JOURNAL,
    MODEL,
    PLAN,
    PREVIEW,
    RECORD,
)
from bdray.store.journal import Journal, read_journal
from bdray.store.labels import ConditionInfo, label_of, warning_for
from bdray.store.storage import Storage

_LISTED = (JOURNAL, PLAN, CONFUSION, MODEL)
"""Files whose checksums a record lists."""

_NOT_DONE = "the condition counts as not done and is run again by the next run of the sweep"


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
        """The condition that `condition.json` says; None when it is missing or damaged, or of a component that is not
        here."""
        content = self.read_json(CONDITION, "the condition is forgotten") or {}
        with suppress(ConditionError):
            return Condition.parse(content["content"]) if "content" in content else None
        return None

    def write_record(self, record: TrialRecord, listed: Mapping[str, str] | None = None) -> None:
        """The record, last of all files: its presence means that the others are there.

        Args:
            listed: files of the record that this one takes the place of, for those that were not written again.
        """
        files = {**(listed or {}), **{name: self.sums[name] for name in _LISTED if name in self.sums}}
        self.write_json(RECORD, {**record.model_dump(mode="json"), "files": files})

    def write_answers(
        self, answers: Sequence[Answer], relearnt: Sequence[Relearnt] = (), untaught: Sequence[Unmeasured] = ()
    ) -> None:
        """Add answers to those that are there; one to the same question is replaced."""
        newer = Answered(answers=tuple(answers), relearnt=tuple(relearnt), untaught=tuple(untaught))
        self.write_json(ANSWERS, self.answered().with_more(newer).model_dump(mode="json"))

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
