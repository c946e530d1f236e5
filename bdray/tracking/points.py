"""What a condition has to deliver: what its journal and answers say, as MLflow takes it, and its other files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from bdray.checksum import checksum
from bdray.errors import StorageNotFoundError
from bdray.record import RATES, Answer, Answered, Relearnt, StageRecord
from bdray.results.detections import measures_of, names_of
from bdray.results.relearnt import recipe_names
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import ANSWERS, CONDITION, JOURNAL, RECORD
from bdray.store.labels import ConditionInfo

ANSWERED, ASKED = "+", "="
"""In a mark of what was delivered: before the version of the answers, and before the questions once all have one."""


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


def points_of(entries: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """The finite values of a journal's lines, in the order written: MLflow would store an infinity as 1.8e308."""
    values = (
        Point(key, math.nan if value is None else float(value), entry["time_ms"], entry["step"])
        for entry in entries
        for key, value in entry["metrics"].items()
    )
    return tuple(point for point in values if math.isfinite(point.value))


def answer_points(answers: Sequence[Answer], time_ms: int) -> tuple[Point, ...]:
    """What detectors measured of a model, as `poisoned/strip/auroc`."""
    names = names_of(answers)
    return tuple(
        Point(f"{answer.result}/{names[answer.key]}/{measure}", float(value), time_ms, 0)
        for answer in answers
        if answer.error is None
        for measure, value in {**measures_of(answer), "seconds": answer.seconds}.items()
        if isinstance(value, (int, float))
    )


def change_points(stages: Sequence[StageRecord]) -> tuple[Point, ...]:
    """What stages say that they did to the model, as `prune/pruned_channels`, at their last epoch."""
    return tuple(
        Point(f"{stage.name}/{name}", value, stage.last.finished_ms, stage.last.epoch)
        for stage in stages
        if stage.last
        for name, value in stage.changes.items()
    )


def relearnt_points(relearnt: Sequence[Relearnt], time_ms: int) -> tuple[Point, ...]:
    """What a poisoned model did after relearning, as `relearnt/attack_success_rate`: of several recipes the last. Each
    of several stands by itself, too, under the name of its columns."""
    names = recipe_names(relearnt)
    # At one time MLflow would show the largest value of each.
    return tuple(
        Point(f"{name}/{measure}", value, time_ms + number, 0)
        for number, each in enumerate(relearnt)
        for name in dict.fromkeys(("relearnt", names[each.key]))
        for measure, value in [*((rate, getattr(each.rates, rate)) for rate in RATES), ("seconds", each.seconds)]
        if value is not None
    )


def asked_mark(asked: Sequence[Mapping[str, Any]]) -> str:
    """Stands for what a sweep asks of its conditions (`SweepInfo.detect`)."""
    return _version(list(asked))


def _version(content: Any) -> str:
    return checksum(json.dumps(content, sort_keys=True).encode())[:12]


class Found:
    """What the folder of a condition holds; no file is read twice.

    Args:
        asked: what its sweep asks of it.

    Raises:
        StorageError: the files cannot be used.
    """

    def __init__(self, folder: ConditionFolder, asked: Sequence[Mapping[str, Any]] = ()) -> None:
        self.folder, self.asked = folder, asked
        # The record first: a journal read after it is complete.
        self.record = folder.record() if folder.had(RECORD) else None
        has_lines = self.record is not None or folder.had(JOURNAL)
        self.journal = points_of(folder.journal(self.record) if has_lines else ())
        self.answered = folder.answered() if folder.had(ANSWERS) else Answered()
        ended_ms = self.record.record.finished_ms if self.record else 0
        taught = self.answered.relearnt if self.record and self.record.record.role == "poisoned" else ()
        said = self.answered.answers if self.record else ()
        stages = self.record.record.stages if self.record else ()
        self.later_points = (
            *change_points(stages),
            *answer_points(said, ended_ms),
            *relearnt_points(taught, ended_ms),
        )

    @property
    def mark(self) -> str:
        """Names what there is of a finished condition: this version of its record and of its answers, and what a sweep
        asks of its conditions where all of that is answered."""
        record = self.record.digest if self.record else ""
        if not self.answered.questions:
            return record
        said = [answer.detector for answer in self.answered.answers if answer.error is None]
        said += [{"relearn": each.relearn} for each in self.answered.relearnt]
        settled = f"{ASKED}{asked_mark(self.asked)}" if all(question in said for question in self.asked) else ""
        return f"{record}{ANSWERED}{_version(self.answered.model_dump(mode='json'))}{settled}"

    @cached_property
    def condition(self) -> ConditionInfo | None:
        return self.folder.info() if self.folder.had(CONDITION) else None

    @property
    def info(self) -> ConditionInfo:
        if self.condition is None:
            raise StorageNotFoundError("use", self.folder.storage.uri_of(CONDITION), "it is missing or damaged")
        return self.condition
