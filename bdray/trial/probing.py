"""A model under other triggers than its own: the floors of a baseline, the probes of a poisoned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from bdray.attacks import Probe
from bdray.condition import Condition
from bdray.record import FloorRecord, ProbeRecord, Rates, StageRecord, Unmeasured
from bdray.trial.isolation import cause_of
from bdray.trial.setup import Experiment


class Probing:
    """A model under probes, stage after stage."""

    def __init__(self, experiment: Experiment, probes: Sequence[Probe]) -> None:
        self.experiment, self.probes = experiment, probes
        self.found: dict[str, dict[str, Rates]] = {}
        """By probe, by what the model is after the stage; without probes that are no other picture than the trigger."""
        self.failed: dict[str, str] = {}
        """Why, by probe."""

    def measure(self, model: nn.Module, after: StageRecord) -> None:
        """What the model does under each probe; on clean images it does what the stage's last evaluation found.

        A probe that fails is left out of all that follows.
        """
        if not self.probes:
            return
        stage = self.experiment.poison_stage()
        clean = (after.last.rates if after.last else None) or stage.evaluate(model).rates()
        for probe in self.probes:
            if probe.key in self.failed:
                continue
            try:
                test = self.experiment.probe_test(probe)
                rates = None if test is None else replace(stage, test=test).evaluate(model).attack_rates(clean)
            except Exception as error:
                self.failed[probe.key] = cause_of(error)
                self.found.pop(probe.key, None)
                continue
            if rates is not None:
                self.found.setdefault(probe.key, {})[after.result] = rates

    def unmeasured(self) -> tuple[Unmeasured, ...]:
        """What failed."""
        failed = [probe for probe in self.probes if probe.key in self.failed]
        condition = self.experiment.condition
        return tuple(one for probe in failed for one in not_measured(condition, [probe], self.failed[probe.key]))

    def floors(self) -> tuple[FloorRecord, ...]:
        """What a baseline does before and after its repair."""
        return tuple(
            FloorRecord(
                probe=probe.key,
                trigger=probe.trigger.model_dump(mode="json"),
                poison=probe.poison.model_dump(mode="json"),
                poisoned=poisoned,
                repaired=repaired[-1] if repaired else None,
                variation=probe.variation,
            )
            for probe in self.probes
            if probe.key in self.found
            for poisoned, *repaired in [list(self.found[probe.key].values())]
        )

    def records(self) -> tuple[ProbeRecord, ...]:
        """What a poisoned model does."""
        return tuple(
            ProbeRecord(
                probe=probe.key,
                trigger=probe.trigger.model_dump(mode="json"),
                variation=probe.variation,
                rates=self.found[probe.key],
            )
            for probe in self.probes
            if probe.key in self.found
        )


def not_measured(condition: Condition, probes: Sequence[Probe], cause: str) -> tuple[Unmeasured, ...]:
    """These probes of its models, all of which failed by `cause`."""
    what: Literal["floor", "probe"] = "floor" if condition.is_baseline else "probe"
    return tuple(Unmeasured(key=probe.key, what=what, attack=probe.label, error=cause) for probe in probes)
