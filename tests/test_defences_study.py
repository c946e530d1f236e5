"""What `sweeps/defences.py` makes of records whose answer is known, and of those that are kept."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import defences
import pytest
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


@pytest.mark.skipif(not (SWEEPS / defences.NAME).exists(), reason="the study has not been kept yet")
def test_the_page_says_what_the_kept_records_do() -> None:
    text = (SWEEPS / "README.md").read_text(encoding="utf-8")
    assert text == written(text, MARKS, section(records_in(SWEEPS / defences.NAME)))
