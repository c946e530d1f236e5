"""What `attacks-claims` found: `python sweeps/attacks.py` writes its part of `README.md`.

Everything comes from the records by bdray's own aggregators; no table is typed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archive import records_in
from sections import answered, marks, recipe, table, written

from bdray.record import StageName, TrialRecord
from bdray.results.cells import Cell, study_of
from bdray.results.detections import AskedNames, attack_of, detector_table

HERE = Path(__file__).parent
NAME = "attacks-claims"
MARKS = marks(NAME, "attacks.py")
HEAD = ("attack", "C-Acc", "ASR", "floor", "took", "C-Acc, tuned", "ASR, tuned", "floor, tuned", "took, tuned")
STAGES: tuple[StageName, ...] = ("poison", "finetune")


def section(records: Sequence[TrialRecord]) -> str:
    """The part of `README.md` between its marks: what each attack did, and what each detector said."""
    study, asked, names = study_of(records), detector_table(records), AskedNames.of(records)
    assert asked is not None
    cells = [*sorted(study.cells, key=lambda cell: named(cell, names)), *study.baselines]
    # A baseline may have been asked more elsewhere.
    poisoned = {named(cell, names) for cell in study.cells}
    columns = [at for at, attack in enumerate(asked.attacks) if attack in poisoned]
    detectors = {name: row for name, row in asked.rows.items() if any(row[at] for at in columns)}
    rows = []
    for cell in cells:
        at = asked.attacks.index(named(cell, names))
        found = ["–" if cell.is_baseline else answered(row[at]) for row in detectors.values()]
        rows.append([named(cell, names), *(text for stage in STAGES for text in rates(cell, stage)), *found])
    return "\n".join([recipe(records, attack_of), "", *table((*HEAD, *detectors), rows)])


def named(cell: Cell, names: AskedNames) -> str:
    """As the detectors' table calls the attack."""
    return names.attacks[cell.replicates[0].record.condition_id]


def rates(cell: Cell, stage: StageName) -> list[str]:
    """Clean accuracy, attack success rate, floor and in how many trainings it took, after a stage."""
    clean = cell.estimate(stage, "clean_accuracy")
    success = None if cell.is_baseline else cell.estimate(stage, "attack_success_rate")
    numbers = (*(found.mean if found else None for found in (clean, success)), cell.floor(stage))
    took = cell.took(stage)
    return [*("–" if number is None else f"{100 * number:.1f} %" for number in numbers), took.text if took else "–"]


def main() -> None:
    readme = HERE / "README.md"
    page = readme.read_text(encoding="utf-8")
    readme.write_text(written(page, MARKS, section(records_in(HERE / NAME))), encoding="utf-8")


if __name__ == "__main__":
    main()
