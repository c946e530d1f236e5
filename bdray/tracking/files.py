"""The files of a sweep folder that MLflow mirrors, read and checked."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bdray.errors import StorageError, StorageNotFoundError, TrackingError
from bdray.store.storage import Storage

ARTIFACTS = ("record.json", "condition.json", "poison_plan.npz", "preview.png", "confusion.json", "error.txt")


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class Journal:
    """What a trial has reported so far.

    Attributes:
        points: the finite values, in the order written.
        non_finite: the others in words (`"train/loss nan at step 3"`): MLflow would store an infinity as 1.8e308.
    """

    points: tuple[Point, ...] = ()
    non_finite: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What `record.json` says about the end of a condition.

    Attributes:
        digest: names this version of the record: `--retry-failed` may replace a failed one.
        status: `finished`, `failed` or `diverged`.
        error: why it failed, if it did.
        started_ms, finished_ms: Unix time in milliseconds, None when not recorded.
    """

    digest: str
    status: str
    error: str | None
    started_ms: int | None
    finished_ms: int | None


@dataclass(frozen=True)
class SweepInfo:
    """What `sweep.json` says."""

    name: str
    experiment: str
    tracking_uri: str
    description: str
    created_ms: int | None


@dataclass(frozen=True)
class ConditionInfo:
    """What `condition.json` says."""

    cell_id: str
    role: str
    label: str
    flat: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepFiles:
    """Reads a sweep folder."""

    folder: Storage

    def info(self) -> SweepInfo:
        """The sweep itself.

        Raises:
            TrackingError: the folder is not a sweep's.
        """
        try:
            content = self.folder.read_json("sweep.json")
        except StorageNotFoundError:
            raise TrackingError(f"{self.folder.uri} is not a sweep folder: it has no sweep.json") from None
        name = content.get("name") or self.folder.name
        return SweepInfo(
            name=name,
            experiment=content.get("experiment") or f"bdray-{name}",
            tracking_uri=content.get("tracking_uri") or "",
            description=content.get("description") or "",
            created_ms=content.get("created_ms"),
        )

    def condition_ids(self) -> list[str]:
        """Ids of all conditions that have a folder."""
        return self.folder.list("conditions")

    def has_started(self, condition_id: str) -> bool:
        """Whether the condition has reported anything yet."""
        folder = self.condition_folder(condition_id)
        return folder.exists("journal.jsonl") or folder.exists("record.json")

    def condition_folder(self, condition_id: str) -> Storage:
        """Where the files of one condition are."""
        return self.folder.child("conditions", condition_id)

    def condition(self, condition_id: str) -> ConditionInfo:
        """The condition's parameters."""
        folder = self.condition_folder(condition_id)
        content = folder.read_json("condition.json")
        try:
            return ConditionInfo(
                cell_id=content["cell_id"],
                role=content["role"],
                label=content.get("label") or "",
                flat=dict(content["flat"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError("use", folder.uri_of("condition.json"), f"not a condition ({error!r})") from None

    def record(self, condition_id: str) -> Record | None:
        """The condition's record, None while it is not finished."""
        folder = self.condition_folder(condition_id)
        try:
            raw = folder.read_bytes("record.json")
        except StorageNotFoundError:
            return None
        try:
            content = json.loads(raw)
            return Record(
                digest=hashlib.sha256(raw).hexdigest()[:16],
                status=content["status"],
                error=_sentence(content.get("error")),
                started_ms=content.get("started_ms"),
                finished_ms=content.get("finished_ms"),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError("use", folder.uri_of("record.json"), f"not a record ({error!r})") from None

    def journal(self, condition_id: str) -> Journal:
        """The condition's metrics so far; empty while nothing was reported."""
        folder = self.condition_folder(condition_id)
        try:
            text = folder.read_text("journal.jsonl")
        except StorageNotFoundError:
            return Journal()
        points: list[Point] = []
        non_finite: list[str] = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                _collect(json.loads(line), points, non_finite)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                where = f"{folder.uri_of('journal.jsonl')}, line {number}"
                raise StorageError("use", where, f"not a journal line ({error!r})") from None
        return Journal(tuple(points), tuple(non_finite))


def _collect(entry: dict[str, Any], points: list[Point], non_finite: list[str]) -> None:
    step, time_ms = int(entry["step"]), int(entry["time_ms"])
    for key, given in entry["metrics"].items():
        value = math.nan if given is None else float(given)
        if math.isfinite(value):
            points.append(Point(key, value, time_ms, step))
        else:
            non_finite.append(f"{key} {value} at step {step}")


def _sentence(error: dict[str, str] | str | None) -> str | None:
    """A record's error as one sentence."""
    return f"{error['kind']}: {error['message']}" if isinstance(error, dict) else error
