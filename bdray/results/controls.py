"""What poisoned conditions are compared with: their unpoisoned twins, and what those do under the same attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bdray.condition import Condition
from bdray.record import FloorRecord, TrialRecord
from bdray.trial.attacks import attack_key


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
    """For every poisoned record whose baseline twin is among `records`: the twin, by condition id."""
    baselines = {record.condition_id: record for record in records if record.role == "baseline"}
    controls: dict[str, Control] = {}
    for record in records:
        condition = Condition.parse(record.condition)
        twin = baselines.get(condition.baseline().condition_id)
        if record.role == "baseline" or twin is None:
            continue
        key = attack_key(condition.trigger, condition.poison)
        floor = next((floor for floor in twin.floors if floor.probe == key), None)
        controls[record.condition_id] = Control(twin, floor)
    return controls


def floors_of(records: Sequence[TrialRecord]) -> dict[str, FloorRecord]:
    """For every poisoned record whose baseline twin was tested with its attack: what the twin does under it before and
    after the repair, by condition id."""
    return {name: control.floor for name, control in controls_of(records).items() if control.floor}
