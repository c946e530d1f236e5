"""What `sweeps/defences.py` makes of records whose answer is known, and of those that are kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from archive import records_in
from defences import NAMES, by_repair, section
from made_up import rates, record, stage
from sections import marks, written

from bdray.condition import Condition, attack_key
from bdray.record import Answer, FloorRecord, TrialRecord
from bdray.report.ranking import ranking
from bdray.results.cells import Cell, Estimate, study_of

SWEEPS = Path(__file__).parents[1] / "sweeps"
LEFT = {("patch", "finetune"): 0.1, ("patch", "clp"): 0.9, ("blend", "finetune"): 0.5, ("blend", "clp"): 0.9}
"""ASR left by trigger and repair, with seed 0; with seed 1 a tenth less."""


def said(detector: str, *, seed: int, **measured: Any) -> Answer:
    counts = {"result": "poisoned", "positives": 20, "negatives": 80}
    return Answer(key=f"{detector}{seed}{measured}", detector={"name": detector}, **{**counts, **measured})


def made_up() -> list[TrialRecord]:
    """Two triggers, two repairs, two seeds; `mm_bd` flags the target of the patch alone."""
    found: dict[str, TrialRecord] = {}
    for (trigger, repair), seed in itertools.product(LEFT, (0, 1)):
        content = {"data": {"name": "cifar10"}, "model": "airbench", "poison": {"rate": 0.1}, "seed": seed}
        condition = Condition.parse({**content, "trigger": {"name": trigger}, "repair": {"name": repair}})
        hit, twin = float(trigger == "patch"), condition.baseline()
        after = stage(
            rates(0.9), rates(LEFT[trigger, repair] - 0.1 * seed, 0.85), name=repair, fingerprint=condition.condition_id
        )
        found[condition.condition_id] = record(
            condition,
            stage(rates(0.9), fingerprint=condition.poison_fingerprint),
            after,
            answers=(
                said("strip", seed=seed, auroc=0.8 + 0.1 * seed, tpr=0.5, fpr=0.1),
                said("mm_bd", seed=seed, index=(3.0 * hit, 0.0), flagged=(0,) if hit else (), tpr=hit, fpr=0.0),
            ),
        )
        known = found.get(twin.condition_id)
        found[twin.condition_id] = record(
            twin,
            stage(rates(0.02), fingerprint=twin.poison_fingerprint),
            stage(
                rates(0.02), rates(0.02, 0.7 if repair == "clp" else 0.9), name=repair, fingerprint=twin.condition_id
            ),
            answers=(said("strip", seed=seed, fpr=0.04), said("mm_bd", seed=seed, index=(0.0, 0.1), flagged=(1,))),
            floors=(*(known.floors if known else ()), floor(condition)),
        )
    return list(found.values())


def floor(condition: Condition) -> FloorRecord:
    """What an unpoisoned model does under the attack: 30 % where it was repaired by `clp`, 2 % otherwise."""
    content, bent = condition.content(), rates(0.3 if condition.content()["repair"]["name"] == "clp" else 0.02)
    probe = attack_key(condition.trigger, condition.poison)
    attack = {"trigger": content["trigger"], "poison": content["poison"]}
    return FloorRecord(probe=probe, poisoned=rates(0.02), repaired=bent, **attack)


def test_the_part_of_the_page_has_every_repair_and_every_detector() -> None:
    lines = section(made_up()).splitlines()
    assert lines[0].endswith("10 % poisoned; stamped before crop and flip.")
    assert lines[1] == "12 conditions, 6 poison stages, 2 seeds; clean accuracy of the baselines 90.0 to 90.0 %."
    assert "| repair | rank | blend | patch | clean accuracy, points | of unpoisoned | seconds |" in lines
    assert "| before | – | 90 % (90 to 90) | 90 % (90 to 90) | – | – | – |" in lines
    assert "| finetune | 1.0 | 45 % (40 to 50) | 5 % (0 to 10) | -5.0 | +0.0 | 0 |" in lines
    assert "| clp | 2.0 | 85 % (80 to 90), floor 30 % | 85 % (80 to 90), floor 30 % | -5.0 | -20.0 | 0 |" in lines
    assert "| detector | blend | patch | baselines |" in lines
    assert "| strip | 0.85, 50 % / 10 % | 0.85, 50 % / 10 % | 4 % |" in lines
    assert "| mm_bd | 0 of 2 | 2 of 2 | 2 of 2 |" in lines


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_kept_records_do(name: str) -> None:
    text = (SWEEPS / "README.md").read_text(encoding="utf-8")
    assert text == written(text, marks(name, "defences.py"), section(records_in(SWEEPS / name)))


def small() -> list[TrialRecord]:
    return records_in(SWEEPS / "defences-cifar10")


def poisoned_models() -> dict[tuple[str, int], TrialRecord]:
    """By trigger and seed, one condition of each poisoned model, which holds what it was asked: not of `sau`, whose
    models were trained again."""
    return {
        (each.condition["trigger"]["name"], each.condition["seed"]): each
        for each in small()
        if each.role == "poisoned" and each.condition["repair"]["name"] != "sau"
    }


def asked(name: str, of: TrialRecord) -> Answer:
    return next(answer for answer in of.answers if answer.detector["name"] == name)


def left_of(cell: Cell) -> Estimate:
    found = cell.estimate("finetune", "attack_success_rate")
    assert found is not None and len(found.values) == 3
    return found


def test_trainings_of_an_attack_end_as_far_apart_as_is_said() -> None:
    said, cells = page(), by_repair(study_of(small()).cells)
    apart = {
        (name, attack): left_of(cell).values
        for name, found in cells.items()
        for attack, cell in found.items()
        if left_of(cell).highest - left_of(cell).lowest > 0.5
    }
    assert (
        f"In {len(apart)} of {sum(map(len, cells.values()))} squares the trainings end more than 50 points apart"
        in said
    )
    shown = {key: [f"{100 * value:.0f}" for value in values] for key, values in apart.items()}
    assert "`finetune` leaves {}, {} and {} % of the frequency".format(*shown["finetune", "frequency"]) in said
    assert "`fine_pruning` {}, {} and {} % of the blend".format(*shown["fine_pruning", "blend"]) in said
    assert (
        "`ft_sam` {}, {} and {} %, `rnp` {}, {} and {} %".format(*shown["ft_sam", "blend"], *shown["rnp", "blend"])
        in said
    )
    first: dict[str, list[float]] = {}
    for each in small():
        if each.role == "poisoned" and each.condition["seed"] == 0 and each.repaired:
            name = json.dumps(each.condition["repair"])
            first.setdefault(name, []).append(each.repaired.attack_success_rate or 0.0)
    least = {json.loads(name)["name"] for name in sorted(first, key=lambda name: sum(first[name]))[:3]}
    assert least == {"rnp", "sau", "fst"}


def test_what_is_read_of_repairs_on_9000_pictures_is_what_their_records_say() -> None:
    said, study = page(), study_of(small())
    cells, ranked = by_repair(study.cells), ranking(study)
    assert ranked is not None
    costs = {row.name: -100 * row.mean.cost for row in ranked.repairs if row.mean}
    most = {name: max(100 * left_of(cell).highest for cell in found.values()) for name, found in cells.items()}
    assert sorted(most, key=most.__getitem__)[:3] == ["sau", "nad", "fst"] and sorted(most.values())[3] > 90
    assert f"`sau` at most {most['sau']:.1f} % and `nad` at most {most['nad']:.1f} %" in said
    assert f"for {costs['sau']:.1f} and {costs['nad']:.1f} points of clean accuracy" in said
    assert f"`fst` leaves at most {most['fst']:.1f} %, for {costs['fst']:.1f}." in said
    plain = {attack: left_of(cell) for attack, cell in cells["finetune"].items()}
    worst = max(100 * plain[attack].highest for attack in ("patch", "sinusoid", "warp"))
    assert f"leaves at most {worst:.1f} % of patch, sinusoid and warp, and at least" in said
    assert f"at least {100 * plain['blend'].lowest:.1f} % of the blend." in said
    pruned: dict[float, list[float]] = {3.0: [], 5.0: []}
    lost = []
    for each in small():
        if each.role == "poisoned" and each.condition["repair"]["name"] == "clp" and each.poisoned and each.repaired:
            pruned[each.condition["repair"]["threshold"]].append(each.stages[1].changes["pruned_channels"])
            lost.append(100 * (each.poisoned.clean_accuracy - each.repaired.clean_accuracy))
    assert set(pruned[3.0]) == {0, 1} and set(pruned[5.0]) == {0}
    assert f"one channel of {sum(pruned[3.0]):.0f} of the {len(pruned[3.0])} models it was tried on" in said
    assert f"costs {max(lost):.1f} points once" in said and sorted(lost)[-2] < 2
    assert min(left_of(cell).lowest for cell in cells["clp · threshold 3"].values()) > 0.5
    accuracies = [each.poisoned.clean_accuracy for each in poisoned_models().values() if each.poisoned]
    assert f"a clean accuracy of {100 * min(accuracies):.0f} to {100 * max(accuracies):.0f} %" in said
    again: dict[tuple[str, int], set[float]] = {}
    for each in small():
        assert each.poisoned
        again.setdefault((each.stages[0].fingerprint, each.condition["seed"]), set()).add(each.poisoned.clean_accuracy)
    often = {seed: {len(found) for (_, of), found in again.items() if of == seed} for seed in (0, 1, 2)}
    # A machine's own bits: what was continued on another one trained its model again.
    assert often == {0: {2}, 1: {1}, 2: {1, 2}}
    filtered: dict[float, set[str]] = {}
    for each in small():
        if (each.condition["seed"], (each.condition["trigger"] or {}).get("name")) == (2, "filter") and each.poisoned:
            filtered.setdefault(each.poisoned.clean_accuracy, set()).add(each.condition["repair"]["name"])
    (before, _), (after, there) = sorted(filtered.items(), key=lambda found: -len(found[1]))
    assert there == {"anp", "rnp", "abl", "filtered"}
    assert f"a model of {100 * after:.1f} % clean accuracy, not {100 * before:.1f} %." in said


def test_what_is_read_of_detectors_on_9000_pictures_is_what_they_answered() -> None:
    said, models = page(), poisoned_models()
    assert len(models) == 18
    scanned = {key: asked("scan", each) for key, each in models.items()}
    found = [
        100 * (each.tpr or 0.0)
        for (name, _), each in scanned.items()
        if name in ("filter", "frequency", "patch", "sinusoid")
    ]
    assert f"`scan` flags {min(found):.0f} to {max(found):.0f} % of the poison of filter, frequency, patch and" in said
    assert [scanned["warp", seed].tpr for seed in (0, 1, 2)] == [0, 0, 0]
    assert [round(scanned["blend", seed].tpr or 0.0, 3) for seed in (0, 1, 2)] == [1, 0, 1]
    assert f"where it flags {100 * (scanned['blend', 1].fpr or 0.0):.1f} % of the clean samples" in said
    sizes = [asked("neural_cleanse", each) for each in models.values()]
    smallest = sum(max(range(10), key=(each.index or ()).__getitem__) == 0 for each in sizes)
    assert f"smallest trigger for the target in {smallest} of 18 models" in said
    assert [each.flagged for each in sizes] == [()] * 18
    margins = [asked("mm_bd", each).flagged for each in models.values()]
    assert f"`mm_bd` flags the target of {sum(flagged == (0,) for flagged in margins)} models of 18" in said
    benign = {each.condition["seed"]: asked("mm_bd", each).flagged for each in small() if each.role == "baseline"}
    assert len(benign) == 3 and all(benign.values())
    scaled = [asked("scale_up", each) for each in models.values()]
    assert [(each.tpr, each.fpr) for each in scaled] == [(0.0, 0.0)] * 18
    assert min(each.auroc or 0.0 for each in scaled) > 0.7
    floors = {
        each.condition["seed"]: 100 * (floor.poisoned.attack_success_rate or 0.0)
        for each in small()
        for floor in each.floors
        if floor.trigger["name"] == "blend" and each.condition["repair"]["name"] != "sau"
    }
    assert f"takes {floors[0]:.1f} % of blended pictures for the target with one seed, {floors[1]:.1f} % with" in said
    assert f"against that, and {floors[2]:.1f} % with the third." in said


@dataclass(frozen=True)
class Repaired:
    """What one repair left of one attack: percentages, points and counts."""

    before: float
    left: float
    lost: float
    did: Mapping[str, float]


def repaired_models(trigger: str | None) -> dict[str, Repaired]:
    """By repair; `clp` with its threshold. `trigger`: None for the unpoisoned model."""
    found: dict[str, Repaired] = {}
    for one in claims():
        before, after, repair = one.poisoned, one.repaired, one.condition["repair"]
        if (one.condition["trigger"] or {}).get("name") != trigger or not before or not after:
            continue
        assert before.attack_success_rate is not None and after.attack_success_rate is not None
        name = repair["name"] + (f" {repair['threshold']:g}" if repair["name"] == "clp" else "")
        found[name] = Repaired(
            100 * before.attack_success_rate,
            100 * after.attack_success_rate,
            100 * (before.clean_accuracy - after.clean_accuracy),
            {key: value for stage in one.stages for key, value in stage.changes.items()},
        )
    return found


def claims() -> list[TrialRecord]:
    return records_in(SWEEPS / "defences-claims")


def page() -> str:
    return " ".join((SWEEPS / "README.md").read_text(encoding="utf-8").split())


def ends(numbers: Iterable[float]) -> str:
    known = list(numbers)
    return f"{min(known):.1f} to {max(known):.1f}"


def test_what_is_read_of_repairs_above_80_percent_is_what_their_records_say() -> None:
    said, patch, blend = page(), repaired_models("patch"), repaired_models("blend")
    clp, anp, filtered = (patch[name] for name in ("clp 3", "anp", "filtered"))
    assert {(one.did["pruned_channels"], one.did["channels"]) for one in (clp, anp)} == {(5, 288)}
    assert f"{clp.left:.1f} and {anp.left:.1f} % are left of {clp.before:.1f} %" in said
    assert f"for {clp.lost:.1f} and {anp.lost:.1f} points of clean accuracy" in said
    without = filtered.did["samples"] - filtered.did["chosen_samples"]
    assert f"without the {without:,.0f} samples that `scan` flags" in said
    assert f"leaves {filtered.left:.1f} % for {filtered.lost:.1f} points" in said
    tuned = [patch[name] for name in ("fst", "sau", "nad", "super_finetune", "ft_sam")]
    assert f"leave {ends(one.left for one in tuned)} % for {ends(one.lost for one in tuned)} points" in said
    assert f"`bnp` ({patch['bnp'].left:.1f} %, for {patch['bnp'].lost:.1f} points)" in said
    for name in ("`fine_pruning`", "`abl`", "plain fine-tuning", "`i_bau`"):
        key = "finetune" if name == "plain fine-tuning" else name.strip("`")
        assert f"{name} ({patch[key].left:.1f} %, {patch[key].lost:.1f})" in said
    i_bau, bnp, anp, cleansed = (blend[name] for name in ("i_bau", "bnp", "anp", "neural_cleanse"))
    assert bnp.did["pruned_channels"] == 7
    assert f"leave {i_bau.left:.1f} and {bnp.left:.1f} % of {bnp.before:.1f} %" in said
    assert f"for {i_bau.lost:.1f} and {bnp.lost:.1f} points, `anp` {anp.left:.1f} % for {anp.lost:.1f}" in said
    assert f"of `neural_cleanse` {cleansed.left:.1f} % for {cleansed.lost:.1f}." in said
    again, isolated = blend["filtered"], blend["abl"]
    assert f"`filtered` by `scan` leaves {again.left:.1f} % for {again.lost:.1f} points, `i_bau`" in said
    assert f"`abl` takes {isolated.lost:.1f} points and nothing of the attack" in said
    assert isolated.left == 100
    failed = [blend[name].left for name in ("clp 3", "ft_sam", "fine_pruning", "finetune")]
    halfway = [blend[name].left for name in ("super_finetune", "nad")]
    assert "leave {} %, `super_finetune` and `nad` {:.1f} and {:.1f} %".format(ends(failed), *halfway) in said
    names = ("fst", "sau", "rnp")
    costs = [f"{patch[name].lost:.1f} and {blend[name].lost:.1f}" for name in names]
    most = max(one[name].left for one in (patch, blend) for name in names)
    assert f"leave at most {most:.1f} % of either attack, for {costs[0]} points, {costs[1]}, {costs[2]}." in said


def test_what_is_read_of_floors_is_what_the_cells_say() -> None:
    floors, left = {}, {}
    for cell in study_of(claims()).cells:
        if cell.values["trigger.name"] == "blend" and (floor := cell.floor("finetune")) is not None:
            name, found = str(cell.values["repair.name"]), cell.estimate("finetune", "attack_success_rate")
            assert found is not None
            floors[name], left[name] = 100 * floor, 100 * found.mean
    assert sorted(floors, key=lambda name: -floors[name])[:2] == ["rnp", "fst"]
    assert (
        f"answer the target in {floors['rnp']:.1f} % of blended pictures after `rnp`, and in {floors['fst']:.1f} %"
        f" after `fst`, where the poisoned ones do in {left['rnp']:.1f} and {left['fst']:.1f} %."
    ) in page()


def test_what_is_read_of_settings_is_what_was_asked() -> None:
    said, one = page(), claims()[0]
    epochs, overlays = (
        next(each.detector[option] for each in one.answers if each.detector["name"] == name)
        for name, option in (("neural_cleanse", "epochs"), ("strip", "overlays"))
    )
    assert f"`neural_cleanse` searches for {epochs} epochs" in said and f"`strip` lays {overlays} pictures" in said
    isolating = next(each.condition["repair"] for each in claims() if each.condition["repair"]["name"] == "abl")
    numbers = [isolating[name] for name in ("isolation_epochs", "tuning_epochs", "unlearning_epochs")]
    assert "`abl` trains for {}, {} and {} epochs".format(*numbers) in said
    chosen = {
        name: {
            each.condition["repair"]["detector"]["name"]
            for each in records_in(SWEEPS / name)
            if each.condition["repair"]["name"] == "filtered"
        }
        for name in NAMES
    }
    assert chosen == {"defences-cifar10": {"spectral_signatures"}, "defences-claims": {"scan"}}


def test_what_is_read_of_an_unpoisoned_model_is_what_its_records_say() -> None:
    said, patch, blend, benign = page(), *(repaired_models(trigger) for trigger in ("patch", "blend", None))
    assert len(benign) == len(patch) == 16
    lost = {name: f"{one.lost:.1f}" for name, one in benign.items()}
    costs = f"{lost['fst']} points for `fst`, {lost['sau']} for `sau`, {lost['rnp']} for `rnp`, {lost['finetune']} for"
    assert f"{costs} plain fine-tuning, nothing for `neural_cleanse`, which flags no class." in said
    assert (benign["neural_cleanse"].lost, benign["neural_cleanse"].did["flagged_classes"]) == (0, 0)
    before = f"{patch['clp 3'].lost:.1f} and {blend['clp 3'].lost:.1f} points of the poisoned models"
    assert (
        f"which took {before}, takes {lost['clp 3']} of this one, and `abl` {lost['abl']}: all that it unlearns" in said
    )


def test_what_is_read_of_detectors_above_80_percent_is_what_they_answered() -> None:
    said = page()
    models = {str(each.condition["trigger"]["name"]): each for each in claims() if each.role == "poisoned"}
    answers = {name: {one.detector["name"]: one for one in model.answers} for name, model in models.items()}
    patch, blend = answers["patch"], answers["blend"]
    for data in (model.data for model in models.values()):
        # Ten classes of one size, and what is poisoned comes from the nine others.
        assert data and data.poisoned_images
        assert round(data.poisoned_images / (data.train_images / 10 + data.poisoned_images), 2) == 0.33

    def flagged(name: str) -> tuple[float, float]:
        return 100 * (patch[name].tpr or 0.0), 100 * (blend[name].tpr or 0.0)

    assert "`scan` flags {:.0f} % of the patch's poison and {:.0f} % of the blend's".format(*flagged("scan")) in said
    assert max(one["scan"].fpr or 0.0 for one in (patch, blend)) < 1e-4
    for name in ("activation_clustering", "beatrix", "strip"):
        assert "`{}` {:.0f} and {:.0f} %".format(name, *flagged(name)) in said
    classes = [(one["neural_cleanse"].flagged, one["mm_bd"].flagged) for one in (patch, blend)]
    assert classes == [((), (8,)), ((0,), (0,))]
    baseline = next(each for each in claims() if each.role == "baseline")
    assert [each.flagged for each in baseline.answers if each.detector["name"] in ("neural_cleanse", "mm_bd")] == [
        ()
    ] * 2
    assert max(rate for name in ("lowest_loss", "scale_up", "teco") for rate in flagged(name)) < 0.25
    assert min(one["scale_up"].auroc or 0.0 for one in (patch, blend)) > 0.9
