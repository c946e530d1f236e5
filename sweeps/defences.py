"""What `defences-cifar10` and `defences-claims` found: `python sweeps/defences.py` writes their parts of `README.md`.

Everything comes from the records by bdray's own aggregators; no table is typed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from archive import records_in
from sections import answered, marks, recipe, table, written

from bdray.record import StageName, TrialRecord
from bdray.report.ranking import RankedRepair, ranking, repair_names
from bdray.results.cells import Cell, Estimate, study_of
from bdray.results.detections import attack_of, detector_table

HERE = Path(__file__).parent
NAMES = ("defences-cifar10", "defences-claims")
BASELINES = "baselines"
HIGH_FLOOR = 0.1
"""A floor of so much is named: a repair that bends every model towards the target looks like one that does little."""


def section(records: Sequence[TrialRecord]) -> str:
    """The part of `README.md` between its marks."""
    trained = {stage.fingerprint for record in records if (stage := record.stage("poison"))}
    seeds = {record.condition["seed"] for record in records}
    clean = [record.poisoned.clean_accuracy for record in records if record.role == "baseline" and record.poisoned]
    ends = f"{100 * min(clean):.1f} to {100 * max(clean):.1f} %" if clean else "not known yet"
    threads = {stage.environment.get("threads", 1) for record in records for stage in record.stages}
    told = [
        recipe(records, attack_of),
        f"{len(records)} conditions, {len(trained)} poison stages, {len(seeds)} seed{'s' * (len(seeds) != 1)}; clean "
        f"accuracy of the baselines {ends}.",
        "",
        "Attack success rate that each repair leaves, mean over seeds with the lowest and the highest, and the floor",
        f"where it is {100 * HIGH_FLOOR:.0f} % or more: what unpoisoned models do under the attack after the same",
        "repair; its mean rank over the attacks by defense effectiveness rating, which knows no floor; clean accuracy",
        "after - before, of poisoned models and of unpoisoned ones; seconds of its stages on a",
        f"busy machine ({' and '.join(map(str, sorted(threads)))} thread{'s' * (threads != {1})}).",
        "",
    ]
    asked = [
        "",
        "Detectors of training sets and of pictures: AUROC, and the true and false positive rate at the method's own",
        "threshold; of models: in how many it flagged the target. Of unpoisoned models: the false positive rate, or in",
        "how many it flagged some class.",
        "",
    ]
    return "\n".join([*told, *repairs(records), *asked, *detectors(records)])


def repairs(records: Sequence[TrialRecord]) -> list[str]:
    """Repairs against attacks, the best mean rank first."""
    study = study_of(records)
    ranked = ranking(study)
    assert ranked is not None
    cells = by_repair(study.cells)
    attacks = list(dict.fromkeys(attack for found in cells.values() for attack in found))
    before = [_left(next(each[attack] for each in cells.values() if attack in each), "poison") for attack in attacks]
    rows = [["before", "–", *before, "–", "–", "–"]]
    rows += [_repair(row, cells[row.name], attacks) for row in ranked.repairs]
    return table(("repair", "rank", *attacks, "clean accuracy, points", "of unpoisoned", "seconds"), rows)


def by_repair(cells: Sequence[Cell]) -> dict[str, dict[str, Cell]]:
    """The cells by repair, as the page calls it, and trigger."""
    found: dict[str, dict[str, Cell]] = {}
    for name, cell in zip(repair_names(cells), cells, strict=True):
        found.setdefault(name, {})[str(cell.values["trigger.name"])] = cell
    return found


def _repair(row: RankedRepair, cells: Mapping[str, Cell], attacks: Sequence[str]) -> list[str]:
    left = [_left(cells[attack]) if attack in cells else "–" for attack in attacks]
    costs = ["–" if cost is None else f"{100 * cost:+.1f}" for cost in (row.mean and row.mean.cost, row.benign)]
    return [row.name, "–" if row.rank is None else f"{row.rank:.1f}", *left, *costs, f"{row.seconds:.0f}"]


def _left(cell: Cell, stage: StageName = "finetune") -> str:
    found, floor = cell.estimate(stage, "attack_success_rate"), cell.floor(stage)
    high = f"floor {100 * floor:.0f} %" if floor is not None and floor >= HIGH_FLOOR else ""
    rates = ", ".join(filter(None, ["–" if found is None else _text(found), high]))
    return " ".join(filter(None, [rates, cell.marks_by(stage)]))


def _text(found: Estimate) -> str:
    ends = f" ({100 * found.lowest:.0f} to {100 * found.highest:.0f})" if len(found.values) > 1 else ""
    return f"{100 * found.mean:.0f} %{ends}"


def detectors(records: Sequence[TrialRecord]) -> list[str]:
    """Detectors against attacks, and what they say of unpoisoned models."""
    found = detector_table(records)
    assert found is not None
    names = [attack.partition(",")[0] for attack in found.attacks]
    # As in the other table: by name, and what is no attack last.
    order = sorted(range(len(names)), key=lambda place: (names[place] == BASELINES, names[place]))
    rows = [[name, *(answered(row[place]) for place in order)] for name, row in found.rows.items()]
    return table(("detector", *(names[place] for place in order)), rows)


def main() -> None:
    readme = HERE / "README.md"
    for name in NAMES:
        page = readme.read_text(encoding="utf-8")
        part = section(records_in(HERE / name))
        readme.write_text(written(page, marks(name, "defences.py"), part), encoding="utf-8")


if __name__ == "__main__":
    main()
