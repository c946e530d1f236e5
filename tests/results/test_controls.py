from __future__ import annotations

import made_up
from made_up import rates, stage

from bdray.condition import Condition, attack_key
from bdray.record import FloorRecord, TrialRecord
from bdray.results.controls import controls_of
from bdray.results.tables import result_table

ATTACK = {"trigger": {"name": "patch"}, "poison": {"rate": 0.1}}


def condition(seed: int = 0, regularizer: str = "none", **attack: object) -> Condition:
    content = {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "regularizer": {"name": regularizer}}
    return Condition.parse({**content, "seed": seed, **(attack or ATTACK)})


def record(one: Condition, attack: float = 0.5, floors: tuple[FloorRecord, ...] = ()) -> TrialRecord:
    stages = (stage(attack, name=name, fingerprint=one.condition_id) for name in ("poison", "finetune"))
    return made_up.record(one, *stages, floors=floors)


def baseline(one: Condition, before: float, after: float | None) -> TrialRecord:
    floor = FloorRecord(
        probe=attack_key(one.trigger, one.poison),
        trigger={},
        poison={},
        poisoned=rates(before),
        repaired=None if after is None else rates(after),
    )
    return record(one.baseline(), 0.0, (floor,))


def test_floors_are_those_of_the_twin_before_and_after_the_repair() -> None:
    plain, mixed, seed = condition(), condition(regularizer="manifold_mixup"), condition(seed=1)
    twins = [baseline(plain, 0.03, 0.20), baseline(mixed, 0.05, 0.06), baseline(seed, 0.07, None)]
    attacks = [record(plain), record(mixed), record(seed)]
    table = result_table([*attacks, *twins]).set_index("condition_id")
    floors = table[["asr_floor_before", "asr_floor_after"]].astype(object)
    floors = floors.where(floors.notna(), None).loc[[each.condition_id for each in attacks]]
    # A regularized row has the floor of its regularized twin.
    assert floors.to_numpy().tolist() == [[0.03, 0.20], [0.05, 0.06], [0.07, None]]


def test_without_a_twin_or_a_test_under_the_attack_there_is_no_floor() -> None:
    one = condition()
    assert controls_of([record(one)]) == {}
    untested = record(one.baseline())
    assert controls_of([record(one), untested])[one.condition_id].floor is None
