"""What `sweeps/README.md` says in numbers is what the kept records hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

from bdray.condition import Condition
from bdray.record import TrialRecord

SWEEPS = Path(__file__).parents[1] / "sweeps"
KEPT = sorted(path.parent.name for path in SWEEPS.glob("*/records.jsonl"))


def records_of(name: str) -> list[TrialRecord]:
    return [
        TrialRecord.model_validate_json(line) for line in (SWEEPS / name / "records.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("name", KEPT)
def test_kept_records_have_the_ids_of_today(name: str) -> None:
    for record in records_of(name):
        condition = Condition.parse(record.condition)
        assert (record.condition_id, record.cell_id) == (condition.condition_id, condition.cell_id)
        assert [stage.name for stage in record.stages] == [stage.name for stage in condition.stages]


def stamp_rows() -> Iterator[str]:
    """The rows of the table about the order of stamping: mean over seeds, and the range."""
    found: dict[tuple[str, str], dict[str, list[TrialRecord]]] = {}
    for record in records_of("stamp-cifar10"):
        if record.role == "poisoned":
            trigger, poison = record.condition["trigger"]["name"], record.condition["poison"]
            cells = found.setdefault((trigger, poison["strategy"].replace("_", "-")), {})
            cells.setdefault(poison["stamp"], []).append(record)
    for (trigger, strategy), cells in sorted(found.items()):
        told = [
            _mean_and_range([100 * (getattr(r, stage).attack_success_rate or 0.0) for r in cells[order]])
            for stage in ("poisoned", "repaired")
            for order in ("before_augmentation", "after_augmentation")
        ]
        yield f"| {trigger}, {strategy} | {' | '.join(told)} |"


def _mean_and_range(rates: list[float]) -> str:
    return f"{fmean(rates):.1f} % ({min(rates):.1f} to {max(rates):.1f})"


def test_the_table_of_the_stamping_order_is_recomputed_from_its_records() -> None:
    text = (SWEEPS / "README.md").read_text()
    rows = list(stamp_rows())
    assert len(rows) == 3
    for row in rows:
        assert row in text
