"""Attacks as test sets see them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bdray.condition import Condition, digest
from bdray.poisoning.base import STRATEGIES, Poison
from bdray.triggers.base import TRIGGERS, Trigger

_TRAINING_ONLY = frozenset({"rate", "rate_of", "mode", "cover_rate", "stamp"})


@dataclass(frozen=True)
class Probe:
    """A trigger and what an attacker wants of it, tested on a baseline that never saw it."""

    trigger: Trigger
    poison: Poison

    @cached_property
    def key(self) -> str:
        """Names the attack: the trigger and whom it should turn into what, but not how much was poisoned."""
        return attack_key(self.trigger, self.poison)


def attack_key(trigger: Trigger | None, poison: Poison) -> str:
    """12 hex digits that name an attack as a test set sees it."""
    wanted = {key: value for key, value in poison.identity().items() if key not in _TRAINING_ONLY}
    return digest({"trigger": trigger.identity() if trigger else None, "poison": wanted})


def probes_of(conditions: Sequence[Condition]) -> tuple[Probe, ...]:
    """The distinct attacks of a sweep, in the order they first stand."""
    probes: dict[str, Probe] = {}
    for condition in conditions:
        if condition.trigger is not None and not condition.is_baseline:
            probe = Probe(condition.trigger, condition.poison)
            probes.setdefault(probe.key, probe)
    return tuple(probes.values())


def dump_probes(probes: Sequence[Probe]) -> str:
    """JSON text of probes."""
    content = [
        {"trigger": probe.trigger.model_dump(mode="json"), "poison": probe.poison.model_dump(mode="json")}
        for probe in probes
    ]
    return json.dumps(content)


def parse_probes(text: str) -> tuple[Probe, ...]:
    """Probes from the JSON text that `dump_probes` made."""
    return tuple(
        Probe(TRIGGERS.build(entry["trigger"]), STRATEGIES.build(entry["poison"])) for entry in json.loads(text)
    )
