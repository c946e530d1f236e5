"""What a condition's journal and answers say, as MLflow takes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bdray.record import RATES, Answer, Relearnt
from bdray.results.detections import measures_of, names_of


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
        for measure, value in {**measures_of(answer), "seconds": answer.seconds}.items()
        if isinstance(value, (int, float))
    )


def relearnt_points(relearnt: Sequence[Relearnt], time_ms: int) -> tuple[Point, ...]:
    """What a poisoned model did after relearning, as `relearnt/attack_success_rate`; of several recipes the last."""
    measured = {name: getattr(relearnt[-1].rates, name) for name in RATES} if relearnt else {}
    seconds = {"seconds": relearnt[-1].seconds} if relearnt else {}
    return tuple(
        Point(f"relearnt/{measure}", value, time_ms, 0)
        for measure, value in {**measured, **seconds}.items()
        if value is not None
    )
