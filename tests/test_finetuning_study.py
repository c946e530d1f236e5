"""What `sweeps/finetuning.py` makes of records whose answer is known, and of those that are kept."""

from __future__ import annotations

import ast
import itertools
import sys
from pathlib import Path
from typing import Any

import finetuning
import numpy as np
import pytest
from archive import records_in
from finetuning import MARKS, cheapest, draw, explained, points_of, section
from made_up import rates, record, stage
from sections import written

from bdray.condition import Condition, attack_key
from bdray.questions import relearn_key
from bdray.recipes import Relearn
from bdray.record import FloorRecord, Relearnt, TrialRecord

SWEEPS = Path(__file__).parents[1] / "sweeps"
SEEDS = range(8)
LEFT = {0.001: 0.95, 0.1: 0.05}
"""ASR left by learning rate, whatever else."""


def one(trigger: str, lr: float, fraction: float, seed: int) -> Condition:
    content = {"data": {"name": "cifar10"}, "model": "airbench", "trigger": {"name": trigger}, "poison": {"rate": 0.1}}
    return Condition.parse({**content, "finetune": {"lr": lr, "fraction": fraction}, "seed": seed})


MANY = {"clean_images": 1000, "attacked_images": 900}
"""Images enough for every training to be clear."""


def made_up(left: dict[float, float], *, relearn: bool = True) -> list[TrialRecord]:
    """Two attacks, a learning rate for each of `left`, two clean shares, and their baselines with floors."""
    found: dict[str, TrialRecord] = {}
    settings = itertools.product(("patch", "blend"), left.items(), (0.01, 0.05), SEEDS)
    for trigger, (lr, after), fraction, seed in settings:
        condition = one(trigger, lr, fraction, seed)
        twin, clean = condition.baseline(), 0.88 if lr == 0.1 else 0.9
        found[condition.condition_id] = record(
            condition,
            stage(rates(0.98, 0.9, **MANY), fingerprint=condition.poison_fingerprint),
            stage(rates(0.98, 0.9, **MANY), *[rates(after, clean, **MANY)] * 10, **tuned(condition)),
            relearnt=(relearnt(condition, 0.6),) if relearn else (),
        )
        before = found.get(twin.condition_id)
        found[twin.condition_id] = record(
            twin,
            stage(rates(0.02, 0.9, **MANY), fingerprint=twin.poison_fingerprint),
            stage(*[rates(0.02, 0.9, **MANY)] * 2, **tuned(twin)),
            floors=(*(before.floors if before else ()), floor_of(condition)),
            relearnt=(*(before.relearnt if before else ()), relearnt(condition, 0.1)),
        )
    return list(found.values())


def tuned(condition: Condition) -> dict[str, Any]:
    return {"name": "finetune", "fingerprint": condition.condition_id}


def attack_of(condition: Condition) -> str:
    return attack_key(condition.trigger, condition.poison)


def floor_of(condition: Condition) -> FloorRecord:
    content, low = condition.content(), rates(0.02, 0.9, **MANY)
    attack = {"trigger": content["trigger"], "poison": content["poison"]}
    return FloorRecord(probe=attack_of(condition), poisoned=low, repaired=low, **attack)


def relearnt(condition: Condition, success: float) -> Relearnt:
    attack = attack_of(condition)
    key, measured = relearn_key(Relearn(), attack), rates(success, 0.9, **MANY)
    return Relearnt(key=key, relearn=Relearn().model_dump(), attack=attack, triggered=50, clean=950, rates=measured)


def test_the_learning_rate_explains_all_where_it_alone_decides() -> None:
    found = {each.share.axis: each for each in explained(made_up(LEFT))}
    assert found["learning rate"].share.share == pytest.approx(1.0)
    assert (found["learning rate"].interval.low, found["learning rate"].interval.high) == pytest.approx((1.0, 1.0))
    assert {axis: each.share.share for axis, each in found.items() if axis != "learning rate"} == pytest.approx(
        {"attack": 0.0, "clean share": 0.0, "epochs": 0.0}
    )


def test_the_cheapest_setting_defuses_in_most_trainings_and_its_price_is_what_clean_accuracy_lost() -> None:
    points = points_of(made_up(LEFT))
    assert len(points) == 8
    found = cheapest(points, "patch")
    assert found is not None
    assert (found.lr, found.lost[0]) == (0.1, pytest.approx(0.02))
    assert found.defused is not None
    assert found.defused.text == "8 of 8"
    assert cheapest(points_of(made_up({0.001: 0.95, 0.01: 0.9})), "patch") is None


def test_the_part_of_the_page_names_settings_prices_and_factors() -> None:
    said = section(made_up(LEFT))
    row = "| patch | 0.1 | 5 % | 98.0 % | 5.0 % (5.0 to 5.0) | 2.0 % | 2.0 (2.0 to 2.0) | 8 of 8 | {} |"
    back = "60.0 % (60.0 to 60.0) | 10.0 % (10.0 to 10.0) | 8 of 8"
    assert row.format(back) in said.splitlines()
    assert row.format("– | – | –") in section(made_up(LEFT, relearn=False)).splitlines()
    assert "| learning rate | 2 | 100 % [100 to 100] |" in said.splitlines()
    begin, end = MARKS
    page = f"before\n{begin}\nold\n{end}\nafter"
    assert written(page, MARKS, said) == f"before\n{begin}\n{said}\n{end}\nafter"
    with pytest.raises(SystemExit, match="has no part"):
        written("nothing", MARKS, said)


def test_the_figure_has_a_point_for_every_setting_of_every_attack(tmp_path: Path) -> None:
    points = points_of(made_up(LEFT))
    figure = draw(points)
    shown = [
        (axes.get_title(), *(round(float(place), 6) for place in np.asarray(line.get_xydata())[0]))
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() not in ("None", "")
    ]
    assert sorted(shown) == sorted(
        (point.attack, round(100 * point.lost[0], 6), round(100 * point.left[0], 6)) for point in points
    )
    figure.savefig(tmp_path / "price.png")


@pytest.mark.skipif(not (SWEEPS / finetuning.NAME).exists(), reason="the study has not been kept yet")
def test_the_page_says_what_the_kept_records_hold() -> None:
    text = (SWEEPS / "README.md").read_text()
    assert text == written(text, MARKS, section(records_in(SWEEPS / finetuning.NAME)))


def test_the_independent_script_shares_no_code_with_bdray() -> None:
    tree = ast.parse((SWEEPS / "plain_finetuning.py").read_text())
    nodes = list(ast.walk(tree))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names == {"torch", "PIL"}
