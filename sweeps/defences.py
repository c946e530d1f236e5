"""What `defences-cifar10` and `defences-claims` found: `python sweeps/defences.py` writes their parts of `README.md`.

Everything comes from the records by bdray's own aggregators; no table is typed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from archive import records_in
from sections import marks, table, written

from bdray.record import TrialRecord
from bdray.report.ranking import RankedRepair, ranking, repair_names
from bdray.results.cells import Cell, Estimate, study_of
from bdray.results.detections import Detections, detector_table

HERE = Path(__file__).parent
NAMES = ("defences-cifar10", "defences-claims")
BASELINES = "baselines"


def section(records: Sequence[TrialRecord]) -> str:
    """The part of `README.md` between its marks."""
    trained = {stage.fingerprint for record in records if (stage := record.stage("poison"))}
    seeds = {record.condition["seed"] for record in records}
    clean = [record.poisoned.clean_accuracy for record in records if record.role == "baseline" and record.poisoned]
    ends = f"{100 * min(clean):.1f} to {100 * max(clean):.1f} %" if clean else "not known yet"
    threads = {stage.environment.get("threads", 1) for record in records for stage in record.stages}
    told = [
        f"{len(records)} conditions, {len(trained)} poison stages, {len(seeds)} seed{'s' * (len(seeds) != 1)}; clean "
        f"accuracy of the baselines {ends}.",
        "",
        "Attack success rate that each repair leaves, mean over seeds with the lowest and the highest; its mean rank",
        "over the attacks by defense effectiveness rating; clean accuracy after - before, of poisoned models and",
        "of unpoisoned ones; seconds of its stages on a",
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


def _left(cell: Cell, stage: str = "finetune") -> str:
    found = cell.estimate("poison" if stage == "poison" else "finetune", "attack_success_rate")
    return " ".join(filter(None, ["–" if found is None else _text(found), cell.marks if stage != "poison" else ""]))


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
    rows = [[name, *(_said(row[place]) for place in order)] for name, row in found.rows.items()]
    return table(("detector", *(names[place] for place in order)), rows)


def _said(found: Detections | None) -> str:
    if found is None:
        return "–"
    if found.is_of_models:
        return f"{found.hits if found.true is not None else found.flagged} of {found.models}"
    own = [f"{100 * rate:.0f} %" for rate in (found.true, found.false) if rate is not None]
    return ", ".join([*([f"{found.auroc:.2f}"] if found.auroc is not None else []), " / ".join(own)])


def main() -> None:
    readme = HERE / "README.md"
    for name in NAMES:
        page = readme.read_text(encoding="utf-8")
        part = section(records_in(HERE / name))
        readme.write_text(written(page, marks(name, "defences.py"), part), encoding="utf-8")


if __name__ == "__main__":
    main()
