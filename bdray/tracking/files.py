"""What a condition's journal says, as MLflow takes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class Points:
    """What a trial has reported so far.

    Attributes:
        points: the finite values, in the order written.
        non_finite: the others in words (`"train/loss nan at step 3"`): MLflow would store an infinity as 1.8e308.
    """

    points: tuple[Point, ...] = ()
    non_finite: tuple[str, ...] = ()


def points_of(entries: Iterable[Mapping[str, Any]]) -> Points:
    """The points of a journal's lines."""
    points: list[Point] = []
    non_finite: list[str] = []
    for entry in entries:
        for key, given in entry["metrics"].items():
            value = math.nan if given is None else float(given)
            if math.isfinite(value):
                points.append(Point(key, value, entry["time_ms"], entry["step"]))
            else:
                non_finite.append(f"{key} {value} at step {entry['step']}")
    return Points(tuple(points), tuple(non_finite))
