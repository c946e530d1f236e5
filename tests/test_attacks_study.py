"""What `sweeps/attacks.py` makes of the kept records, and what is read in its table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from archive import records_in
from attacks import MARKS, NAME, named, section
from sections import written

from bdray.results.cells import Cell, RateName, study_of
from bdray.results.detections import AskedNames, Detections, detector_table

SWEEPS = Path(__file__).parents[1] / "sweeps"


def test_the_page_says_what_the_kept_records_do() -> None:
    text = (SWEEPS / "README.md").read_text(encoding="utf-8")
    assert text == written(text, MARKS, section(records_in(SWEEPS / NAME)))


def attack(cell: Cell) -> str:
    """The attack in a word or two; what is asked of the labels first."""
    trigger, poison = cell.replicates[0].record.condition["trigger"], cell.replicates[0].record.condition["poison"]
    strategy = poison["strategy"] if poison["strategy"] != "all_to_one" else ""
    border = "at the border" * (trigger.get("margin") == 0)
    whole = "as published" * (poison.get("surrogate", {}).get("training") == "adversarial")
    return " ".join(filter(None, (strategy, trigger["name"], border, whole)))


def test_what_is_read_in_the_table_is_what_the_records_say() -> None:
    said = " ".join((SWEEPS / "README.md").read_text(encoding="utf-8").split())
    records = records_in(SWEEPS / NAME)
    study, asked, names = study_of(records), detector_table(records), AskedNames.of(records)
    assert asked is not None
    cells = {attack(cell): cell for cell in study.cells}
    aurocs = {
        name: {detector: row[asked.attacks.index(named(cell, names))] for detector, row in asked.rows.items()}
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
    fails = {"clean_label patch", "clean_label patch at the border", "clean_label patch at the border as published"}
    assert {name for name, each in took.items() if each and each.text == "0 of 1"} == fails
    assert {each.text for each in took.values() if each} == {"0 of 1", "1 of 1"} and len(cells) == 13
    clean = [rate(cell, "poison", "clean_accuracy") for cell in cells.values()]
    (baseline,) = study.baselines
    before = rate(baseline, "poison", "clean_accuracy")
    assert f"at a clean accuracy of {min(clean):.1f} to {max(clean):.1f} % beside {before:.1f} % without poison" in said
    inside, outside, whole = (cells[name] for name in sorted(fails))
    shown = f"one pixel from the border ({rate(inside, 'poison'):.1f} %) or at the border as published"
    assert f"{shown} ({rate(outside, 'poison'):.1f} %)" in said
    assert f"adversarially trained, at 16 levels ({rate(whole, 'poison'):.1f} %)" in said
    for cell, margin, training, levels in (
        (inside, 1, "natural", 8),
        (outside, 0, "natural", 8),
        (whole, 0, "adversarial", 16),
    ):
        content = cell.replicates[0].record.condition
        assert (content["trigger"]["margin"], content["poison"]["surrogate"]["training"]) == (margin, training)
        assert round(255 * content["poison"]["epsilon"]) == levels
    floors = [100 * (cells[name].floor("poison") or 0.0) for name in ("bpp", "clean_label frequency")]
    assert "misled in {:.1f} % by `bpp`, in {:.1f} % by the frequency trigger of CTRL".format(*floors) in said
    assert sorted(100 * (cell.floor("poison") or 0.0) for cell in cells.values())[-2:] == sorted(floors)

    left = {name: rate(cell, "finetune") for name, cell in cells.items() if name not in fails}
    stay = {"bpp", "filter", "frequency", "clean_label frequency"}
    assert {name for name in left if (each := cells[name].took("finetune")) and each.text == "1 of 1"} == stay
    ended = [value for name, value in left.items() if name not in stay]
    stayed = [left[name] for name in stay]
    assert len(ended) == 6
    assert f"both adaptive attacks ({min(ended):.1f} to {max(ended):.1f} % are left)" in said
    assert f"leaves {min(stayed):.1f} to {max(stayed):.1f} % of `bpp`, the filter and both frequency triggers" in said

    costs = [
        rate(cells[name], "poison", "clean_accuracy") - rate(cells[name], "finetune", "clean_accuracy")
        for name in left
        if name not in stay
    ]
    front = " ".join((SWEEPS.parent / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"Of thirteen other attacks, one training each, {len(left)} took, and ten epochs of clean fine-tuning ended"
        f" {len(ended)} of these for {min(costs):.1f} to {max(costs):.1f} points" in front
    )

    by_scan = {name: auroc(name, "scan") for name in cells}
    missed = {name: each for name, each in by_scan.items() if float(each) < 0.8}
    found = [each for name, each in by_scan.items() if name not in missed]
    assert missed.keys() == {"clean_label frequency", "all_to_all patch", *fails}
    assert (
        f"an AUROC of {min(found)} or more under eight, and of {min(missed.values())} to {max(missed.values())}" in said
    )
    pair = ("activation_clustering", "spectral_signatures")
    every = [auroc("all_to_all patch", each) for each in pair]
    assert "is found by `activation_clustering` ({}) and `spectral_signatures` ({})".format(*every) in said
    ctrl = "clean_label frequency"
    heard = {detector: found.auroc or 0.0 for detector, found in aurocs[ctrl].items() if found}
    assert len(heard) == 4 and max(heard, key=heard.__getitem__) == "strip"
    assert f"of CTRL `strip` sees most ({auroc(ctrl, 'strip')})" in said

    def flagged(found: Mapping[str, Detections | None], detector: str) -> float:
        known = found[detector]
        assert known and known.true is not None
        return 100 * known.true

    hidden = [aurocs[name] for name in ("adaptive_blend", "adaptive_patch")]
    assert [flagged(each, "scan") for each in hidden] == [0, 0]
    assert f"of Adaptive-Patch ({by_scan['adaptive_blend']} and {by_scan['adaptive_patch']})" in said
    plain = detectors_of("defences-claims", "blend")
    assert f"where it flags {flagged(plain, 'scan'):.0f} % of the plain blend's in" in said
    assert f"`strip` flags {flagged(hidden[0], 'strip'):.0f} % of Adaptive-Blend" in said
    assert f"flag at most {max(flagged(hidden[0], each) for each in pair):.1f} % of it, but none of the" in said
    assert [flagged(plain, each) for each in pair] == [0, 0]
    bent = detectors_of("defences-cifar10", "warp")["strip"]
    assert bent and bent.auroc is not None
    covered = auroc("warp", "strip")
    assert f"`strip` has {covered} under the warp with noise covers, and {bent.auroc:.2f} under the one without" in said
    found_by = [flagged(aurocs["one_to_one patch"], each) for each in ("scan", "activation_clustering")]
    assert "flags {:.0f} %, and `activation_clustering` {:.0f} %.".format(*found_by) in said


def detectors_of(name: str, trigger: str) -> Mapping[str, Detections | None]:
    """What each detector of a study said of the models under a trigger."""
    asked = detector_table(records_in(SWEEPS / name))
    assert asked is not None
    (at,) = (place for place, attack in enumerate(asked.attacks) if attack.partition(",")[0] == trigger)
    return {detector: row[at] for detector, row in asked.rows.items()}
