"""Whether a model learnt this trigger, or reacts to anything bright: what `evaluate.probes` measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bdray.record import ProbeRecord, Rates, StageName
from bdray.results.cells import Cell, Estimate, Replicate, Study, estimate
from bdray.triggers.base import TRIGGERS


@dataclass(frozen=True)
class Answer:
    """Attack success rate of a cell's models to one kind of picture.

    Attributes:
        what: "its trigger", "off its place", "a part", or another trigger.
        floor: mean of what their baselines answer to it; None where none was tested with it.
    """

    what: str
    rate: Estimate
    floor: float | None


@dataclass(frozen=True)
class ProbedStage:
    """What a cell's models answer after one stage: to their own trigger, its variations, and other triggers."""

    cell: Cell
    stage: str
    own: tuple[Answer | None, Answer | None, Answer | None]
    others: tuple[Answer, ...]

    @property
    def highest(self) -> Answer | None:
        """The other trigger they answer most."""
        return max(self.others, key=lambda answer: answer.rate.mean, default=None)


def probed_stages(study: Study) -> list[ProbedStage]:
    """Every cell with probes, before and after the repair; empty where nothing was probed. Cells that share their
    models stand once."""
    stages: tuple[tuple[StageName, str], ...] = (("poison", "before"), ("finetune", "after"))
    found = [_probed(cell, stage, words) for stage, words in stages for cell in study.distinct(stage)]
    return [each for each in found if each]


def _probed(cell: Cell, stage: StageName, words: str) -> ProbedStage | None:
    counted = [replicate for replicate in cell.models(stage) if replicate.record.probes and replicate.rates(stage)]
    if not counted:
        return None
    whole = estimate([replicate.rates(stage) for replicate in counted], "attack_success_rate")
    floor = cell.floor(stage)
    own = Answer("its trigger", whole, floor) if whole else None
    moved, part = (_answer(counted, stage, name, variation) for name, variation in _OWN.items())
    names = dict.fromkeys(_label(probe) for each in counted for probe in each.record.probes)
    others = [_answer(counted, stage, name, "whole") for name in names]
    return ProbedStage(cell, words, (own, moved, part), tuple(each for each in others if each))


_OWN = {"off its place": "off_position", "a part": "part"}


def _answer(replicates: Sequence[Replicate], stage: StageName, name: str, variation: str) -> Answer | None:
    """To one variation of their own trigger, or (`whole`) to the other trigger called `name`."""
    rates: list[Rates | None] = []
    floors: list[float] = []
    for replicate in replicates:
        for probe in replicate.record.probes:
            if probe.variation == variation and (variation != "whole" or _label(probe) == name):
                rates.append(probe.rates.get(_result(replicate, stage)))
                floor = _floor(replicate, stage, probe)
                floors += [] if floor is None else [floor]
    found = estimate(rates, "attack_success_rate")
    return Answer(name, found, fmean(floors) if floors else None) if found else None


def _result(replicate: Replicate, stage: StageName) -> str:
    stages = replicate.record.stages
    return stages[0].result if stage == "poison" else stages[-1].result


def _floor(replicate: Replicate, stage: StageName, probe: ProbeRecord) -> float | None:
    twin = replicate.baseline(stage)
    tested = next((floor for floor in (twin.floors if twin else ()) if floor.probe == probe.probe), None)
    rates = (tested.poisoned if stage == "poison" else tested.repaired) if tested else None
    return rates.attack_success_rate if rates else None


def _label(probe: ProbeRecord) -> str:
    return TRIGGERS.label(probe.trigger)
