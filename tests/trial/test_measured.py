"""Measurements that are kept, and those that there are none of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from bdray.errors import UserError
from bdray.store.storage import Storage
from bdray.trial.measured import Measured, Unmeasured, attempted


class Length(BaseModel):
    metres: float


def length_of(name: str) -> Length | Unmeasured:
    return Unmeasured("too long") if name == "coast" else Length(metres=len(name))


@pytest.mark.parametrize("is_kept", [True, False])
def test_only_what_is_not_known_is_measured_and_what_fails_says_why(is_kept: bool, tmp_path: Path) -> None:
    kept, asked = Measured(Storage.open(tmp_path) if is_kept else None, "lengths.json", Length), list[list[str]]()

    def measure(names: list[str]) -> list[Length | Unmeasured]:
        asked.append(names)
        return [length_of(name) for name in names]

    assert kept.complete({"a": "rod"}, measure) == ({"a": Length(metres=3)}, {})
    known = {"a": Length(metres=3), "b": Length(metres=4)}
    for _ in range(2):
        assert kept.complete({"a": "rod", "b": "rope", "c": "coast"}, measure) == (known, {"c": Unmeasured("too long")})
    assert asked == [["rod"], ["rope", "coast"], ["coast"]]
    assert kept.complete({"b": "rope"}, measure) == (known, {})
    assert len(asked) == 3
    assert kept.read() == known


def test_where_nothing_was_measured_nothing_is_written(tmp_path: Path) -> None:
    kept = Measured(Storage.open(tmp_path), "lengths.json", Length)
    kept.add({})
    assert kept.complete({"c": "coast"}, lambda _: [Unmeasured("too long")])[0] == {}
    assert list(tmp_path.iterdir()) == []


def raising(error: Exception) -> Callable[[], Length]:
    def measure() -> Length:
        raise error

    return measure


def test_an_attempt_is_a_measurement_or_its_cause() -> None:
    assert attempted(lambda: Length(metres=1)) == Length(metres=1)
    assert attempted(raising(UserError("train.lr: is wrong"))) == Unmeasured("train.lr: is wrong")
    assert attempted(raising(RuntimeError("no room\n at all"))) == Unmeasured("RuntimeError: no room")
