"""What `sweeps/defences.py` makes of records whose answer is known, and of those that are kept."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import defences
from archive import records_in
from defences import MARKS, section
from made_up import rates, record, stage
from sections import written

from bdray.condition import Condition
from bdray.record import Answer, TrialRecord

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
        found[twin.condition_id] = record(
            twin,
            stage(rates(0.02), fingerprint=twin.poison_fingerprint),
            stage(*[rates(0.02)] * 2, name=repair, fingerprint=twin.condition_id),
            answers=(said("strip", seed=seed, fpr=0.04), said("mm_bd", seed=seed, index=(0.0, 0.1), flagged=(1,))),
        )
    return list(found.values())


def test_the_part_of_the_page_has_every_repair_and_every_detector() -> None:
    lines = section(made_up()).splitlines()
    assert lines[0] == "12 conditions, 6 poison stages, 2 seeds; clean accuracy of the baselines 90.0 to 90.0 %."
    assert "| repair | rank | blend | patch | clean accuracy, points | seconds |" in lines
    assert "| before | – | 90 % (90 to 90) | 90 % (90 to 90) | – | – |" in lines
    assert "| finetune | 1.0 | 45 % (40 to 50) | 5 % (0 to 10) | -5.0 | 0 |" in lines
    assert "| clp | 2.0 | 85 % (80 to 90) | 85 % (80 to 90) | -5.0 | 0 |" in lines
    assert "| detector | blend | patch | baselines |" in lines
    assert "| strip | 0.85, 50 % / 10 % | 0.85, 50 % / 10 % | 4 % |" in lines
    assert "| mm_bd | 0 of 2 | 2 of 2 | 2 of 2 |" in lines


def test_the_page_says_what_the_kept_records_do() -> None:
    text = (SWEEPS / "README.md").read_text(encoding="utf-8")
    assert text == written(text, MARKS, section(records_in(SWEEPS / defences.NAME)))


def test_what_is_read_in_the_tables_is_what_the_first_seed_says() -> None:
    kept = [each for each in records_in(SWEEPS / defences.NAME) if each.condition["seed"] == 0]
    poisoned = {each.condition_id: each for each in kept if each.role == "poisoned"}
    # One condition of each poisoned model: all of them hold what it was asked.
    models = list({each.stages[0].fingerprint: each for each in poisoned.values()}.values())
    accuracies = [each.poisoned.clean_accuracy for each in models if each.poisoned]
    assert (len(models), round(100 * min(accuracies)), round(100 * max(accuracies))) == (6, 57, 61)

    def asked(name: str, of: TrialRecord) -> Answer:
        return next(answer for answer in of.answers if answer.detector["name"] == name)

    sizes = [asked("neural_cleanse", each) for each in models]
    assert sum(max(range(10), key=(each.index or ()).__getitem__) == 0 for each in sizes) == 5
    assert [each.flagged for each in sizes] == [()] * 6
    margins = [asked("mm_bd", each).flagged for each in models]
    assert sum(flagged == (0,) for flagged in margins) == 5
    assert next(asked("mm_bd", each).flagged for each in kept if each.role == "baseline")
    scaled = [asked("scale_up", each) for each in models]
    assert [(each.tpr, each.fpr) for each in scaled] == [(0.0, 0.0)] * 6
    assert min(each.auroc or 0.0 for each in scaled) > 0.7
    pruned = {
        threshold: [
            each.stages[1].details["pruned_channels"]
            for each in poisoned.values()
            if each.condition["repair"] == {"name": "clp", "threshold": threshold}
        ]
        for threshold in (3.0, 5.0)
    }
    assert (sorted(pruned[3.0]), pruned[5.0]) == ([0, 0, 0, 0, 1, 1], [0] * 6)
