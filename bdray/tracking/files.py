"""What a condition's journal says, as MLflow takes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


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
