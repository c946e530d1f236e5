from __future__ import annotations

from typing import Any

import pytest
from made_up import rates, record

from bdray.attacks import Probe, dump_probes, own_probes, parse_probes, probes_of
from bdray.condition import Condition, attack_key
from bdray.errors import ConditionError
from bdray.poisoning.all_to_one import AllToOne
from bdray.poisoning.base import Poison
from bdray.record import FloorRecord
from bdray.results.controls import controls_of
from bdray.triggers import TRIGGERS


def condition(**sections: Any) -> Condition:
    content = {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "trigger": {"name": "patch"}}
    return Condition.parse({**content, **sections})


def key(**sections: Any) -> str:
    one = condition(**sections)
    return attack_key(one.trigger, one.poison)


@pytest.mark.parametrize(
    "poison", [{"rate": 0.3}, {"rate_of": "eligible"}, {"mode": "append"}, {"cover_rate": 0.1}, {"target": 0}]
)
def test_how_much_is_poisoned_is_no_part_of_an_attack(poison: dict[str, Any]) -> None:
    assert key(poison=poison) == key()


@pytest.mark.parametrize(
    "sections",
    [
        {"trigger": {"name": "blend"}},
        {"trigger": {"name": "patch", "size": 4}},
        {"poison": {"target": 1}},
        {"poison": {"strategy": "all_to_all"}},
        {"trigger": None, "poison": {"rate": 0.0}},
    ],
)
def test_another_trigger_or_another_wish_is_another_attack(sections: dict[str, Any]) -> None:
    assert key(**sections) != key()


def test_an_attack_is_named_by_what_test_images_are_stamped_with() -> None:
    strong, faint = {"name": "blend", "alpha": 0.3}, {"name": "blend", "alpha": 0.1}
    stronger = condition(trigger=faint, poison={"test_trigger": {"alpha": 0.3}})
    assert stronger.attack == condition(trigger=strong).attack != condition(trigger=faint).attack
    assert probes_of([stronger]) == probes_of([condition(trigger=strong)])
    assert stronger.poison_fingerprint == condition(trigger=faint).poison_fingerprint
    assert stronger.condition_id != condition(trigger=faint).condition_id
    assert Condition.parse(stronger.content()) == stronger


def test_a_test_trigger_says_what_differs_or_is_another_one() -> None:
    one = condition(trigger={"name": "patch", "size": 4}, poison={"test_trigger": {"margin": 2}})
    assert one.test_trigger == TRIGGERS.build({"name": "patch", "size": 4, "margin": 2})
    other = condition(poison={"test_trigger": "warp"})
    assert other.test_trigger == TRIGGERS.build("warp")
    adaptive = condition(trigger={"name": "adaptive_blend"}, poison={"test_trigger": {"alpha": 0.2}})
    assert adaptive.test_trigger == TRIGGERS.build("blend")
    with pytest.raises(ConditionError, match=r"poison.test_trigger.sise: trigger 'patch' has no option 'sise'"):
        condition(poison={"test_trigger": {"sise": 3}})
    with pytest.raises(ConditionError, match=r"poison.test_trigger: must be a mapping, got 3"):
        condition(poison={"test_trigger": 3})


def target_of(poison: Poison) -> int:
    assert isinstance(poison, AllToOne)
    return poison.target


def test_probes_are_the_distinct_attacks_in_the_order_they_stand() -> None:
    conditions = [
        condition().baseline(),
        condition(trigger={"name": "blend"}),
        condition(),
        condition(poison={"rate": 0.01}, seed=3),
        condition(trigger={"name": "blend"}, poison={"target": 2}),
        condition(trigger={"name": "warp"}, poison={"rate": 0.0}),
    ]
    probes = probes_of(conditions)
    assert [(probe.trigger.name, target_of(probe.poison)) for probe in probes] == [
        ("blend", 0),
        ("patch", 0),
        ("blend", 2),
    ]
    assert len({probe.key for probe in probes}) == 3


def test_probes_of_a_sweep_that_asks_for_more() -> None:
    one, other = condition(), condition(trigger={"name": "blend"}, poison={"target": 2})
    probes = probes_of([one, condition(seed=1), other, one.baseline()], varied=True)
    assert [(p.trigger.name, target_of(p.poison), p.variation) for p in probes] == [
        ("patch", 0, "whole"),
        ("blend", 2, "whole"),
        ("patch", 0, "off_position"),
        ("patch", 0, "part"),
        ("blend", 0, "whole"),
        ("blend", 2, "off_position"),
        ("blend", 2, "part"),
        ("patch", 2, "whole"),
    ]
    assert len({probe.key for probe in probes}) == 8
    assert {probe.key for probe in own_probes(one, probes)} == {probe.key for probe in probes[2:5]}
    assert own_probes(one.baseline(), probes) == ()


def test_conditions_that_once_asked_for_probes_are_those_of_today() -> None:
    """The section is read and passed over: questions are part of no id."""
    plain = condition()
    for probes in (True, False):
        old = condition(evaluate={"probes": probes})
        assert (old, old.condition_id) == (plain, plain.condition_id)
    assert "evaluate" not in plain.content()


def test_probes_survive_json() -> None:
    attacks = [condition(), condition(trigger={"name": "blend"}, poison={"strategy": "all_to_all"})]
    probes = probes_of(attacks, varied=True)
    read = parse_probes(dump_probes(probes))
    assert read == probes
    assert [probe.key for probe in read] == [probe.key for probe in probes]
    assert parse_probes("[]") == ()


def floor(one: Condition, poisoned: float, finetuned: float | None) -> FloorRecord:
    assert one.trigger is not None
    return FloorRecord(
        probe=Probe(one.trigger, one.poison).key,
        trigger={},
        poison={},
        poisoned=rates(poisoned),
        repaired=None if finetuned is None else rates(finetuned),
    )


def test_the_floor_is_what_the_twin_with_the_same_seed_does_under_the_same_attack() -> None:
    patch, blend = condition(), condition(trigger={"name": "blend"})
    low, warp = condition(poison={"rate": 0.01}), condition(trigger={"name": "warp"})
    other_seed, other_model = condition(seed=1), condition(model={"name": "resnet20"})
    twin = record(patch.baseline(), floors=(floor(patch, 0.3, 0.2), floor(blend, 0.07, None)))
    other_twin = record(other_seed.baseline(), floors=(floor(patch, 0.9, 0.8),))
    poisoned = [record(one) for one in (patch, blend, low, warp, other_seed, other_model)]
    controls = controls_of([*poisoned, other_twin, twin])
    assert {name: control.floor for name, control in controls.items() if control.floor} == {
        patch.condition_id: floor(patch, 0.3, 0.2),
        blend.condition_id: floor(blend, 0.07, None),
        low.condition_id: floor(patch, 0.3, 0.2),
        other_seed.condition_id: floor(patch, 0.9, 0.8),
    }
    assert controls_of(poisoned) == {}
