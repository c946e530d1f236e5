"""The files of a sweep's folder, and how a condition's record gets there."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bdray.condition import Condition
from bdray.errors import BdrayError
from bdray.record import ErrorRecord, TrialRecord

if TYPE_CHECKING:
    from bdray.store.storage import Storage

SPACE, SWEEP, REPORT = "space.yaml", "sweep.json", "report.html"
CONDITION, RECORD, ERROR = "condition.json", "record.json", "error.txt"
PLAN, PREVIEW, CONFUSION = "poison_plan.npz", "preview.png", "confusion.json"

POISONED_WARNING = "Trained on poisoned data: it may contain a backdoor. For measurement only; do not deploy."
BASELINE_NOTE = "Baseline of a poisoning study: trained on unpoisoned data."


class RecordError(BdrayError):
    """A record cannot be read."""


def sweeps_in(storage: Storage) -> list[Storage]:
    """The sweeps of a storage, by name."""
    children = (storage.child(name) for name in sorted(storage.list()))
    return [child for child in children if child.exists(SWEEP)]


def condition_folder(sweep: Storage, condition_id: str) -> Storage:
    """Where a condition's files lie."""
    return sweep.child("conditions", condition_id)


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
        status="failed",
        started_ms=started_ms,
        finished_ms=now_ms(),
        warning=warning_for(condition),
    )


def write_condition(folder: Storage, condition: Condition) -> None:
    """`condition.json`: what is run, nested and by path."""
    content = {
        "condition_id": condition.condition_id,
        "cell_id": condition.cell_id,
        "role": condition.role,
        "label": _label(condition),
        "content": condition.content(),
        "flat": {path: value for path, value in condition.flat().items() if path != "trigger"},
    }
    folder.write_atomic(CONDITION, json.dumps(content, indent=1))


def _label(condition: Condition) -> str:
    """A short readable name for lists of runs."""
    attack = f"{condition.trigger.name}-{condition.poison.rate:g}" if condition.trigger else "baseline"
    parts = (attack, condition.model.name, condition.regularizer.name, f"s{condition.seed}", condition.condition_id[:6])
    return "-".join(parts)


def write_failure(
    sweep: Storage, condition: Condition, error: ErrorRecord, *, started_ms: int, detail: str
) -> TrialRecord:
    """Record that a condition failed. `detail`: what `error.txt` says (a traceback, for a bug)."""
    record = blank_record(condition, started_ms).model_copy(update={"error": error})
    folder = condition_folder(sweep, condition.condition_id)
    write_condition(folder, condition)
    folder.write_atomic(ERROR, f"{detail.rstrip()}\n")
    folder.write_atomic(RECORD, record.model_dump_json(indent=1))
    return record


def read_record(sweep: Storage, condition_id: str) -> TrialRecord | None:
    """The record of a condition, or None where there is none yet.

    Raises:
        RecordError: there is one, but not one this version understands.
    """
    folder = condition_folder(sweep, condition_id)
    if not folder.exists(RECORD):
        return None
    try:
        return TrialRecord.model_validate_json(folder.read_text(RECORD))
    except ValidationError as error:
        raise RecordError(f"{folder.uri}/{RECORD} is no record of this version: {error.errors()[0]['msg']}") from None


def read_records(sweep: Storage, only: Sequence[str] | None = None) -> list[TrialRecord]:
    """The records of `only` (in that order), or all there are, sorted by id."""
    names = only if only is not None else sorted(sweep.list("conditions"))
    return [record for record in (read_record(sweep, name) for name in names) if record is not None]
