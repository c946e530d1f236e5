"""What `sweeps/finetuning.py` makes of records whose answer is known, and of those that are kept."""

from __future__ import annotations

from pathlib import Path

import finetuning
import pytest
from archive import records_in
from finetuning import BEGIN, END, cheapest, draw, explained, points_of, section, written
from made_up import rates, record, stage

from bdray.condition import Condition
from bdray.record import FloorRecord, TrialRecord

SWEEPS = Path(__file__).parents[1] / "sweeps"
SEEDS = range(8)
LEFT = {0.001: 0.95, 0.1: 0.05}
"""ASR left by learning rate, whatever else."""


def one(trigger: str, lr: float, fraction: float, seed: int) -> Condition:
    content = {"data": {"name": "cifar10"}, "model": "airbench", "trigger": {"name": trigger}, "poison": {"rate": 0.1}}
    return Condition.parse({**content, "finetune": {"lr": lr, "fraction": fraction}, "seed": seed})


def made_up(left: dict[float, float]) -> list[TrialRecord]:
    """Two attacks, a learning rate for each of `left`, two clean shares, and their baselines with floors."""
    many = {"clean_images": 1000, "attacked_images": 900}
    found: dict[str, TrialRecord] = {}
    for trigger in ("patch", "blend"):
        for lr, after in left.items():
            for fraction in (0.01, 0.05):
                for seed in SEEDS:
                    condition = one(trigger, lr, fraction, seed)
                    cost = 0.02 if lr == 0.1 else 0.0
                    ends = [rates(0.98, 0.9, **many), *[rates(after, 0.9 - cost, **many)] * 10]
                    found[condition.condition_id] = record(
                        condition,
                        stage(ends[0], fingerprint=condition.poison_fingerprint),
                        stage(*ends, name="finetune", fingerprint=condition.condition_id),
                    )
                    twin = condition.baseline()
                    floor = rates(0.02, 0.9, **many)
                    attack = FloorRecord(
                        probe=attack_of(condition),
                        trigger=condition.content()["trigger"],
                        poison=condition.content()["poison"],
                        poisoned=floor,
                        repaired=floor,
                    )
                    known = found.get(twin.condition_id)
                    floors = {each.probe: each for each in (*(known.floors if known else ()), attack)}
                    found[twin.condition_id] = record(
                        twin,
                        stage(rates(0.02, 0.9, **many), fingerprint=twin.poison_fingerprint),
                        stage(*[rates(0.02, 0.9, **many)] * 2, name="finetune", fingerprint=twin.condition_id),
                        floors=tuple(floors.values()),
                    )
    return list(found.values())


def attack_of(condition: Condition) -> str:
    from bdray.condition import attack_key

    return attack_key(condition.trigger, condition.poison)


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
    row = "| patch | 0.1 | 5 % | 98.0 % | 5.0 % (5.0 to 5.0) | 2.0 % | 2.0 (2.0 to 2.0) | 8 of 8 |"
    assert row in said.splitlines()
    assert "| learning rate | 2 | 100 % [100 to 100] |" in said.splitlines()
    page = f"before\n{BEGIN}\nold\n{END}\nafter"
    assert written(page, said) == f"before\n{BEGIN}\n{said}\n{END}\nafter"
    with pytest.raises(SystemExit, match="has no part"):
        written("nothing", said)


def test_the_figure_has_a_point_for_every_setting_of_every_attack(tmp_path: Path) -> None:
    points = points_of(made_up(LEFT))
    figure = draw(points)
    shown = [
        (axes.get_title(), round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6))
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
    assert text == written(text, section(records_in(SWEEPS / finetuning.NAME)))
