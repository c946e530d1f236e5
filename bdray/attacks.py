"""Attacks as test sets see them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bdray.condition import TEST_TRIGGER, Condition, attack_key
from bdray.poisoning.base import STRATEGIES, Poison
from bdray.record import TrialRecord
from bdray.triggers.base import TRIGGERS, Trigger
from bdray.triggers.variations import Variation

VARIATIONS: tuple[Variation, ...] = ("off_position", "part")


@dataclass(frozen=True)
class Probe:
    """A trigger and what an attacker wants of it, tested on a model that was not trained with it.

    Attributes:
        variation: of the trigger, instead of the trigger itself.
    """

    trigger: Trigger
    poison: Poison
    variation: Variation = "whole"

    @classmethod
    def of(cls, condition: Condition) -> Probe | None:
        """A condition's own attack; None without a trigger."""
        if condition.test_trigger is None:
            return None
        # A test set sees no more of the strategy.
        poison = STRATEGIES.build({**condition.poison.model_dump(mode="json"), TEST_TRIGGER: None})
        return cls(condition.test_trigger, poison)

    @property
    def label(self) -> str:
        """In words, for messages."""
        varied = "" if self.variation == "whole" else f", {self.variation.replace('_', ' ')}"
        return f"{self.trigger.label}{varied} ({self.poison.label})"

    @cached_property
    def key(self) -> str:
        """Names the attack: the trigger and whom it should turn into what, but not how much was poisoned."""
        return attack_key(self.trigger, self.poison, self.variation)


def probes_of(conditions: Sequence[Condition], *, varied: bool = False) -> tuple[Probe, ...]:
    """The distinct attacks of a sweep, in the order they first stand.

    Args:
        varied: then also what `evaluate.probes` adds to them.
    """
    probes: dict[str, Probe] = {}
    probed: dict[str, Condition] = {}
    for condition in conditions:
        probe = None if condition.is_baseline else Probe.of(condition)
        if probe is not None:
            probes.setdefault(probe.key, probe)
            if varied:
                probed.setdefault(probe.key, condition)
    attacks = tuple(probes.values())
    for condition in probed.values():
        for probe in own_probes(condition, attacks):
            probes.setdefault(probe.key, probe)
    return tuple(probes.values())


def own_probes(condition: Condition, sweep: Sequence[Probe]) -> tuple[Probe, ...]:
    """What `evaluate.probes` tests a condition with beside its own trigger: that off its place, a part of it, and every
    other trigger of the sweep, each wanting what its own attack wants."""
    own = Probe.of(condition)
    if own is None or condition.is_baseline:
        return ()
    found = {
        probe.key: probe
        for probe in (
            *(replace(own, variation=variation) for variation in VARIATIONS),
            *(Probe(other.trigger, own.poison) for other in sweep),
        )
    }
    return tuple(probe for key, probe in found.items() if key != own.key)


def probes_for(condition: Condition, sweep: Sequence[Probe], *, probed: bool) -> tuple[Probe, ...]:
    """What its models are tested with beside its own attack: a baseline with the attacks of the sweep, for the floors.

    Args:
        probed: whether `evaluate.probes` asks for more of a poisoned condition.
    """
    if condition.is_baseline:
        return tuple(sweep)
    return own_probes(condition, sweep) if probed else ()


def lacks_tests(record: TrialRecord, tests: Sequence[Probe], *, again: bool = False) -> bool:
    """Whether it is of a baseline that was not tested with every attack of the sweep.

    Args:
        tests: see `probes_for`.
        again: a test that failed counts as not made, of a poisoned condition too.
    """
    failed = {each.key for each in record.unmeasured} & {probe.key for probe in tests}
    wanted = {probe.key for probe in tests if probe.variation == "whole"} if record.role == "baseline" else set()
    return not wanted <= {*(floor.probe for floor in record.floors), *failed} or (again and bool(failed))


def untested(record: TrialRecord, tests: Sequence[Probe]) -> tuple[Probe, ...]:
    """Those of `tests` that the record says nothing of, or that they failed."""
    known = {*(floor.probe for floor in record.floors), *(probe.probe for probe in record.probes)}
    return tuple(probe for probe in tests if probe.key not in known)


def attacks_to_relearn(condition: Condition, sweep: Sequence[Probe]) -> tuple[Probe, ...]:
    """What a repaired model is taught: its own attack; of a baseline those of the `sweep`."""
    if not condition.is_repaired:
        return ()
    if condition.is_baseline:
        return tuple(probe for probe in sweep if probe.variation == "whole")
    own = Probe.of(condition)
    return () if own is None else (own,)


def dump_probes(probes: Sequence[Probe]) -> str:
    """JSON text of probes."""
    content = [
        {
            "trigger": probe.trigger.model_dump(mode="json"),
            "poison": probe.poison.model_dump(mode="json"),
            "variation": probe.variation,
        }
        for probe in probes
    ]
    return json.dumps(content)


def parse_probes(text: str) -> tuple[Probe, ...]:
    """Probes from the JSON text that `dump_probes` made."""
    return tuple(
        Probe(TRIGGERS.build(entry["trigger"]), STRATEGIES.build(entry["poison"]), entry["variation"])
        for entry in json.loads(text)
    )
