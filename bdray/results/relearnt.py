"""What repaired models did after relearning, beside what the same taught their baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bdray.record import RATES, Relearnt, TrialRecord
from bdray.results.cells import Cell, Estimate, Replicate, Study, counts_of, estimate, is_sound
from bdray.results.controls import Control
from bdray.results.detections import named
from bdray.results.took import TOOK_AT, took
from bdray.results.trainings import Trainings


def recipes_of(records: Iterable[TrialRecord]) -> dict[str, str]:
    """`recipe_names` of all that was asked of poisoned models."""
    return recipe_names([each for record in records if record.role == "poisoned" for each in record.relearnt])


def recipe_names(found: Sequence[Relearnt]) -> dict[str, str]:
    """What each recipe is called in columns, by the keys of its answers: `relearnt`, and the options in which it
    differs from others."""
    alike = [{"name": "relearnt", **each.relearn} for each in found]
    return {each.key: named(recipe, alike) for each, recipe in zip(found, alike, strict=True)}


def relearnt_columns(
    record: TrialRecord, control: Control | None, names: Mapping[str, str], took_at: float = TOOK_AT
) -> dict[str, Any]:
    """`relearnt_<measure>` of one record; of a baseline none, for it is the control. `names`: see `recipes_of`."""
    row: dict[str, Any] = {}
    for each in record.relearnt if record.role == "poisoned" else ():
        name, floor = names[each.key], _taught(control, each)
        row |= {f"{name}_{rate}": getattr(each.rates, rate) for rate in RATES}
        row[f"{name}_asr_floor"] = floor.rates.attack_success_rate if floor else None
        row[f"{name}_took"] = _took(each, floor, took_at) if is_sound(record, "finetune") else None
    return row


def _taught(control: Control | None, same: Relearnt) -> Relearnt | None:
    """What the baseline was taught in the same way, where it is sound after the repair and after that."""
    known = control.baseline.relearnt if control and is_sound(control.baseline, "finetune") else ()
    return next((each for each in known if each.key == same.key and not each.rates.collapsed), None)


def _took(own: Relearnt, floor: Relearnt | None, at: float) -> bool | None:
    counts = [counts_of(each.rates, "attack_success_rate") if each else None for each in (own, floor)]
    if own.rates.collapsed or counts[0] is None or counts[1] is None:
        return None
    return took(*counts[0], *counts[1], at=at)


@dataclass(frozen=True)
class Relearning:
    """One cell's repaired models after relearning.

    Attributes:
        name: of the recipe.
        repaired: attack success rate after the repair, before relearning.
        floor: of the baselines after the same repair and the same relearning; None where none was asked.
        took: in how many trainings the backdoor is back, by that floor; what diverged or collapsed, in the repair or in
            relearning, is unclear; None without a floor.
    """

    cell: Cell
    name: str
    repaired: Estimate
    relearnt: Estimate
    accuracy: Estimate
    floor: Estimate | None
    took: Trainings | None


def relearnings(study: Study) -> list[Relearning]:
    """Of every cell and recipe; empty where nothing was asked."""
    names = recipes_of(study.records)
    found = (_relearning(cell, name, names) for cell in study.cells for name in dict.fromkeys(names.values()))
    return [each for each in found if each]


def _relearning(cell: Cell, name: str, names: Mapping[str, str]) -> Relearning | None:
    found = [(replicate, _by_name(replicate, name, names)) for replicate in cell.models("finetune")]
    pairs = [(replicate, each) for replicate, each in found if each or not replicate.sound("finetune")]
    sound = [(replicate, each) for replicate, each in pairs if each and _counts(replicate, each)]
    rates = [each.rates for _, each in sound]
    repaired = estimate([replicate.rates("finetune") for replicate, _ in sound], "attack_success_rate")
    relearnt, accuracy = (estimate(rates, rate) for rate in ("attack_success_rate", "clean_accuracy"))
    if repaired is None or relearnt is None or accuracy is None:
        return None
    floors = [taught for replicate, each in sound if (taught := _taught(replicate.control, each))]
    floor = estimate([each.rates for each in floors], "attack_success_rate")
    judged = Trainings.among(_judged(*pair, cell.took_at) for pair in pairs) if floor else None
    return Relearning(cell, name, repaired, relearnt, accuracy, floor, judged)


def _by_name(replicate: Replicate, name: str, names: Mapping[str, str]) -> Relearnt | None:
    return next((each for each in replicate.record.relearnt if names[each.key] == name), None)


def _counts(replicate: Replicate, each: Relearnt) -> bool:
    return replicate.rates("finetune") is not None and not each.rates.collapsed


def _judged(replicate: Replicate, each: Relearnt | None, at: float) -> tuple[bool | None, float | None]:
    if each is None or not _counts(replicate, each):
        return None, None
    return _took(each, _taught(replicate.control, each), at), each.rates.attack_success_rate
