"""What `sweeps/attacks.py` makes of the kept records, and what is read in its table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from archive import records_in
from attacks import MARKS, NAME, named, section
from sections import written

from bdray.results.cells import Cell, RateName, study_of
from bdray.results.detections import detector_table

SWEEPS = Path(__file__).parents[1] / "sweeps"


def test_the_page_says_what_the_kept_records_do() -> None:
    text = (SWEEPS / "README.md").read_text(encoding="utf-8")
    assert text == written(text, MARKS, section(records_in(SWEEPS / NAME)))


def attack(cell: Cell) -> str:
    """The attack in a word or two; what is asked of the labels first."""
    trigger, poison = cell.replicates[0].record.condition["trigger"], cell.replicates[0].record.condition["poison"]
    strategy = poison["strategy"] if poison["strategy"] != "all_to_one" else ""
    return " ".join(filter(None, (strategy, trigger["name"])))


def test_what_is_read_in_the_table_is_what_the_records_say() -> None:
    said = " ".join((SWEEPS / "README.md").read_text(encoding="utf-8").split())
    records = records_in(SWEEPS / NAME)
    study, asked = study_of(records), detector_table(records)
    assert asked is not None
    cells = {attack(cell): cell for cell in study.cells}
    aurocs = {
        name: {detector: row[asked.attacks.index(named(cell))] for detector, row in asked.rows.items()}
        for name, cell in cells.items()
    }

    def rate(cell: Cell, stage: Literal["poison", "finetune"], name: RateName = "attack_success_rate") -> float:
        found = cell.estimate(stage, name)
        assert found is not None
        return 100 * found.mean

    def auroc(name: str, detector: str) -> str:
        found = aurocs[name][detector]
        assert found and found.auroc is not None
        return f"{found.auroc:.2f}"

    took = {name: cell.took("poison") for name, cell in cells.items()}
    assert [name for name, each in took.items() if each and each.text == "0 of 1"] == ["clean_label patch"]
    clean = [rate(cell, "poison", "clean_accuracy") for cell in cells.values()]
    (baseline,) = study.baselines
    before = rate(baseline, "poison", "clean_accuracy")
    assert f"at a clean accuracy of {min(clean):.1f} to {max(clean):.1f} % beside {before:.1f} % without poison" in said
    assert f"Label-consistent does not ({rate(cells['clean_label patch'], 'poison'):.1f} %)" in said
    floors = [100 * (cells[name].floor("poison") or 0.0) for name in ("bpp", "clean_label frequency")]
    assert "misled in {:.1f} % by `bpp`, in {:.1f} % by the frequency trigger of CTRL".format(*floors) in said
    assert sorted(100 * (cell.floor("poison") or 0.0) for cell in cells.values())[-2:] == sorted(floors)

    left = {name: rate(cell, "finetune") for name, cell in cells.items() if name != "clean_label patch"}
    stay = {"bpp", "filter", "frequency", "clean_label frequency"}
    assert {name for name in left if (each := cells[name].took("finetune")) and each.text == "1 of 1"} == stay
    ended = [value for name, value in left.items() if name not in stay]
    stayed = [left[name] for name in stay]
    assert len(ended) == 6
    assert f"both adaptive attacks ({min(ended):.1f} to {max(ended):.1f} % are left)" in said
    assert f"leaves {min(stayed):.1f} to {max(stayed):.1f} % of `bpp`, the filter and both frequency triggers" in said

    front = " ".join((SWEEPS.parent / "README.md").read_text(encoding="utf-8").split())
    assert len(cells) == 11
    assert (
        f"Of eleven other attacks {len(left)} take there, and ten epochs of clean fine-tuning end {len(ended)} of"
        in front
    )

    by_scan = {name: auroc(name, "scan") for name in cells}
    missed = {name: each for name, each in by_scan.items() if float(each) < 0.8}
    found = [each for name, each in by_scan.items() if name not in missed]
    assert missed.keys() == {"clean_label frequency", "clean_label patch", "all_to_all patch"}
    assert (
        f"an AUROC of {min(found)} or more under eight, and of {min(missed.values())} to {max(missed.values())}" in said
    )
    pair = ("activation_clustering", "spectral_signatures")
    whole = [auroc("all_to_all patch", each) for each in pair]
    assert "`activation_clustering` ({}) and `spectral_signatures` ({}) are best".format(*whole) in said
    for words, name in (("as its paper says", "adaptive_blend"), ("the filter", "filter")):
        assert "{} ({} and {})".format(words, *(auroc(name, each) for each in pair)) in said
    assert "the frequency trigger ({} and {})".format(*(auroc("frequency", each) for each in pair)) in said
    assert f"from `scan` ({by_scan['adaptive_blend']}) and `strip` ({auroc('adaptive_blend', 'strip')}) it does" in said
    assert (
        f"hides from `strip` ({auroc('warp', 'strip')}), as its paper says, and not from `scan` ({by_scan['warp']})"
        in said
    )
    source = "one_to_one patch"
    assert f"(TaCT), has {by_scan[source]} there, `strip` {auroc(source, 'strip')}." in said
