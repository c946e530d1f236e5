"""What poisoned conditions are compared with: their unpoisoned twins, and what those do under the same attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bdray.condition import Condition
from bdray.errors import UserError
from bdray.questions import attack_key
from bdray.record import FloorRecord, TrialRecord


@dataclass(frozen=True)
class Control:
    """What a poisoned condition is compared with.

    Attributes:
        baseline: its unpoisoned twin.
        floor: what that one does under the condition's attack; None when it was not tested with it.
    """

    baseline: TrialRecord
    floor: FloorRecord | None


def controls_of(records: Sequence[TrialRecord]) -> dict[str, Control]:
    """For every poisoned record whose baseline twin is among `records`: the twin, by condition id. What needs a plugin
    that is not loaded has none."""
    baselines = {record.condition_id: record for record in records if record.role == "baseline"}
    controls: dict[str, Control] = {}
    for record in records:
        found = _twin_and_attack(record) if record.role == "poisoned" else None
        twin = baselines.get(found[0]) if found else None
        if found and twin:
            floor = next((floor for floor in twin.floors if floor.probe == found[1]), None)
            controls[record.condition_id] = Control(twin, floor)
    return controls


_known: dict[str, tuple[str, str]] = {}
"""By condition id, which is made of all that decides it: tables are made again and again while a sweep runs."""


def _twin_and_attack(record: TrialRecord) -> tuple[str, str] | None:
    """The baseline's condition id, and under which name it was tested with this attack."""
    if record.condition_id not in _known:
        try:
            condition = Condition.parse(record.condition)
        except UserError:
            return None
        key = attack_key(condition.trigger, condition.poison)
        _known[record.condition_id] = condition.baseline().condition_id, key
    return _known[record.condition_id]
