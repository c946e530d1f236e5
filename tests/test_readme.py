"""What the README says in numbers and names that something here can recompute.

The table of `make sweep` and its seconds are one machine's, and say so.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from archive import records_in
from finetuning import points_of
from shipped_spaces import shipped_space

from bdray.data import DATASETS
from bdray.detectors import DETECTORS
from bdray.poisoning import STRATEGIES
from bdray.record import TrialRecord
from bdray.regularizers import REGULARIZERS
from bdray.repairs import REPAIRS
from bdray.triggers import TRIGGERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SAID = " ".join(TEXT.split())
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines()


def kept(name: str) -> list[TrialRecord]:
    lines = (ROOT / "sweeps" / name / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [TrialRecord.model_validate_json(line) for line in lines]


def own_column(row: str) -> str:
    """bdray's cell in the comparison with other toolboxes."""
    (line,) = (line for line in TEXT.splitlines() if line.startswith(f"| {row}"))
    return line.split(" | ")[1]


@pytest.mark.parametrize(
    ("row", "registry"),
    [("defenses that repair", REPAIRS), ("detection of poisoned pictures", DETECTORS), ("data |", DATASETS)],
    ids=["repairs", "detectors", "data"],
)
def test_the_comparison_names_all_there_are(row: str, registry: object) -> None:
    assert hasattr(registry, "names")
    assert set(re.findall(r"`(\w+)`", own_column(row))) == set(registry.names()) - {"none"}


def test_the_comparison_counts_attacks_and_regularizers() -> None:
    triggers, strategies = (set(registry.names()) for registry in (TRIGGERS, STRATEGIES))
    assert f"{len(triggers)} triggers" in own_column("attacks by poisoned pictures")
    assert f"x {len(strategies)} strategies" in own_column("attacks by poisoned pictures")
    said = own_column("regularization as an axis")
    for name in set(REGULARIZERS.names()) - {"none", "composite"}:
        assert name.replace("_", " ").replace("neighbors", "neighbours") in said


def test_the_reference_point_is_that_of_its_record() -> None:
    (record,) = kept("reference-cifar10")
    assert record.poisoned is not None and record.poisoned.attack_success_rate is not None
    clean, success = (100 * rate for rate in (record.poisoned.clean_accuracy, record.poisoned.attack_success_rate))
    assert f"bdray measures {clean:.1f} % and {success:.1f} % there" in SAID
    sweeps = " ".join((ROOT / "sweeps" / "README.md").read_text(encoding="utf-8").split())
    (script,) = re.findall(r"clean accuracy ([\d.]+) %, attack success rate ([\d.]+) %, after fine-tuning", sweeps)
    assert "measured clean accuracy {} % and attack success {} % for".format(*script) in SAID


def test_the_tipping_points_took_so_many_trainings() -> None:
    records = kept("tipping-point-small")
    triggers = {record.condition["trigger"]["name"] for record in records if record.condition["trigger"]}
    assert len(triggers) == 3
    assert f"{len(records)} trainings for three triggers" in SAID


def test_the_price_of_fine_tuning_is_that_of_its_records() -> None:
    records = records_in(ROOT / "sweeps" / "finetuning-repairs")
    clean = [each.poisoned.clean_accuracy for each in records if each.role == "baseline" and each.poisoned]
    assert f"a clean accuracy of {100 * min(clean):.0f} to {100 * max(clean):.0f} %" in SAID
    assert {each.condition["seed"] for each in records} == {0, 1, 2}
    assert "the mean of three seeds" in SAID
    assert "three of ten seeds" in SAID
    found = {(each.attack, each.lr, each.fraction): each for each in points_of(records)}
    patch, blend = (found[attack, 0.02, 0.05] for attack in ("patch", "blend"))
    assert (
        f"leaves {100 * patch.left[0]:.1f} % of the patch's success and costs {100 * patch.lost[0]:.1f} points" in SAID
    )
    assert f"of the blend's it leaves {100 * blend.left[0]:.1f} %" in SAID


def test_what_clp_does_is_what_its_record_says() -> None:
    records = records_in(ROOT / "sweeps" / "defences-claims")
    did, left, was, cost = {}, {}, {}, {}
    for each in records:
        if each.condition["repair"] == {"name": "clp", "threshold": 3.0} and each.poisoned and each.repaired:
            name = (each.condition["trigger"] or {}).get("name")
            did[name], before, after = each.stages[1].changes, each.poisoned, each.repaired
            was[name], left[name] = (100 * (rates.attack_success_rate or 0.0) for rates in (before, after))
            cost[name] = 100 * (before.clean_accuracy - after.clean_accuracy)
    assert did.keys() == {"patch", "blend", None}, "one training each"
    record = next(each for each in records if each.role == "poisoned")
    channels = [did["patch"][name] for name in ("pruned_channels", "channels")]
    assert "`clp` at 3 standard deviations switches off {:.0f} of {:.0f} channels".format(*channels) in SAID
    assert f"({left['patch']:.1f} % left of {was['patch']:.1f} %) for {cost['patch']:.1f} points" in SAID
    assert f"of the blend it leaves {left['blend']:.1f} %" in SAID
    assert f"from an unpoisoned model it takes {cost[None]:.1f} points" in SAID
    (repairs, detectors) = ({each.condition["repair"]["name"] for each in records}, record.answers)
    assert (len(detectors), len(repairs)) == (12, 15)
    assert "Fifteen repairs and twelve detectors" in SAID


def test_the_settings_of_the_result_that_is_shown() -> None:
    content = next(record for record in kept("axes-flowers") if record.role == "poisoned").condition
    assert (content["train"]["epochs"], content["finetune"]["epochs"], content["poison"]["rate"]) == (6, 3, 0.1)
    assert content["model"]["name"] == "resnet20" and content["data"]["image_size"] == 32
    assert "resnet20, six epochs, 10 % poisoned, then three epochs of clean fine-tuning; three" in SAID


def test_a_patch_survives_crop_and_flip_so_often() -> None:
    """Every crop of the default patch on a black picture, each stamped pixel known by its number and counted once."""
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    stamped = TRIGGERS.build({"name": "patch"}).apply(picture, torch.Generator()).ne(picture).any(1)[0].numpy()
    bordered = np.pad(stamped * np.arange(1, 32**2 + 1).reshape(32, 32), 4, mode="reflect")
    crops = [bordered[top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    # A flip hides nothing.
    left = [len(set(crop.flat) - {0}) for crop in crops]
    assert stamped.sum() == 9
    counts = [sum(each == 9 for each in left), sum(0 < each < 9 for each in left), left.count(0)]
    # Three pixels to a side, one from the edge: of nine offsets six keep all, and one none.
    assert counts == [6 * 6, 81 - 6 * 6 - 17, 81 - 8 * 8]
    whole, part, gone = (f"{100 * count / len(crops):.0f} %" for count in counts)
    said = f"nothing of a 3 x 3 corner patch in {gone} of the stamped pictures and a fragment in {part}"
    assert said in SAID
    sweeps, changes = (
        " ".join((ROOT / name).read_text(encoding="utf-8").split()) for name in ("sweeps/README.md", "CHANGELOG.md")
    )
    assert f"whole in {whole}, a fragment in {part} and gone in {gone}" in sweeps
    repeated = sum((crop > 0).sum() >= 9 for crop in crops) / len(crops)
    assert f'counted mirrored pixels: {100 * repeated:.0f} % "whole" instead of {whole}' in changes


@pytest.mark.parametrize(("name", "count"), [("quickstart", "20"), ("full", "11,664")])
def test_search_spaces_have_so_many_conditions(name: str, count: str) -> None:
    assert f"{len(shipped_space(name).conditions()):,}" == count
    assert re.search(rf"{count}\s+conditions", SAID)


def measured(start: str, column: int) -> list[float]:
    """A column of the rows of `benchmarks/RESULTS.md` that begin so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in RESULTS if re.match(start, line)]
    return [float(row[column]) for row in rows]


def test_speeds_are_those_of_the_benchmarks() -> None:
    pictures = measured(r"\| resnet\d+, 32 px pictures, \d cores? \|", 8)
    photographs = measured(r"\| resnet20, photographs, \d cores? \|", 8)
    assert f"| {min(pictures):.2f} to {max(pictures):.2f} | at least 2.5" in SAID
    assert f"| {min(photographs):.2f} to {max(photographs):.2f} | at least 2.5" in SAID
    (shared,), (memory,) = measured(r"\| in one process, one storage", 3), measured(r"\| 4 trials / \(4 x", 4)
    assert f"in one process, on Ray | {shared:.2f}, " in SAID
    assert f"the data set once) | {memory:.2f} | under 1.3" in SAID
