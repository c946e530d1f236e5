"""What poisoned conditions are compared with: their unpoisoned twins, and what those do under the same attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bdray.record import FloorRecord, TrialRecord, facts_of


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
    """For every poisoned record whose baseline twin is among `records`: the twin, by condition id. A record that names
    none (`facts_of`) has none."""
    baselines = {record.condition_id: record for record in records if record.role == "baseline"}
    controls: dict[str, Control] = {}
    for record in records:
        facts = facts_of(record) if record.role == "poisoned" else None
        twin = baselines.get(facts.twin) if facts else None
        if facts and twin:
            floor = next((floor for floor in twin.floors if floor.probe == facts.attack), None)
            controls[record.condition_id] = Control(twin, floor)
    return controls
