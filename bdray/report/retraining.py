"""Finding 4: a few epochs of clean retraining defuse the backdoor. What decides is each backdoor's own floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bdray.condition import Condition
from bdray.record import Rates, StageName
from bdray.report.cells import Cell, Estimate, Study, estimate_of_differences, make_estimate, seed_means
from bdray.report.statistics import Interval, newcombe_interval, t_interval

ABOVE_FLOOR = 0.05
"""A backdoor works when it succeeds more often than a model without it, by more than this: our choice.
Less is of little use to an attacker, and over a few hundred test images counting alone moves a rate by as much."""

Verdict = Literal["works", "does not", "undecided"]
Counts = tuple[int, int]
"""Successes, attacked images."""


@dataclass(frozen=True)
class Defusal:
    """One cell before and after the repair.

    Attributes:
        left_before, left_after: attack success rate above the floor of the same seed and stage; None without a floor.
        cost: clean accuracy after - before, paired within records.
    """

    cell: Cell
    before: Estimate
    after: Estimate
    left_before: Estimate | None
    left_after: Estimate | None
    cost: Estimate | None

    @property
    def verdicts(self) -> tuple[Verdict | None, Verdict | None]:
        """Whether the backdoor works before and after; None where there is no floor to say so."""
        return verdict(self.left_before), verdict(self.left_after)


@dataclass(frozen=True)
class Retraining:
    """Finding 4.

    Attributes:
        cost: clean accuracy after - before over seeds, each the mean over cells that have every seed.
    """

    unanswered: str = ""
    margin: float = ABOVE_FLOOR
    cells: tuple[Defusal, ...] = ()
    cost: Estimate | None = None

    @property
    def judged(self) -> list[Defusal]:
        """Cells with a floor before and after."""
        return [cell for cell in self.cells if None not in cell.verdicts]

    def of(self, before: Verdict, after: Verdict | None = None) -> list[Defusal]:
        """Judged cells with these verdicts (`after`: any)."""
        found = [cell for cell in self.judged if cell.verdicts[0] == before]
        return [cell for cell in found if after is None or cell.verdicts[1] == after]

    @property
    def costliest(self) -> Defusal | None:
        known = [(cell.cost.mean, index) for index, cell in enumerate(self.cells) if cell.cost]
        return self.cells[min(known)[1]] if known else None


def retraining(study: Study) -> Retraining:
    """What the repair leaves, and what it costs."""
    if not any(Condition.parse(record.condition).is_repaired for record in study.records):
        return Retraining("Nothing was repaired in this sweep (`repair: none`, or no epochs of it).")
    cells = [defusal for cell in study.cells if (defusal := _defusal(cell))]
    if not cells:
        return Retraining("No poisoned condition finished its repair.")
    costs = [costs for cell in study.cells if (costs := _costs(cell))]
    return Retraining(cells=tuple(cells), cost=estimate_of_differences(seed_means(costs)))


def _defusal(cell: Cell) -> Defusal | None:
    before, after = (cell.estimate(stage, "attack_success_rate") for stage in ("poison", "finetune"))
    if before is None or after is None:
        return None
    left_before, left_after = (above_floor(cell, stage) for stage in ("poison", "finetune"))
    return Defusal(cell, before, after, left_before, left_after, estimate_of_differences(list(_costs(cell).values())))


def _costs(cell: Cell) -> dict[int, float]:
    """By seed: clean accuracy after - before."""
    found = [(each.record.condition["seed"], each.rates("poison"), each.rates("finetune")) for each in cell.replicates]
    return {seed: after.clean_accuracy - before.clean_accuracy for seed, before, after in found if before and after}


def above_floor(cell: Cell, stage: StageName) -> Estimate | None:
    """Attack success rate - floor after `stage`, paired by seed; None where no seed has both.

    One seed: Newcombe's interval over its test images. Several: Student's, no narrower than counting allows.
    """
    found = [(_counts(each.rates(stage)), _counts(each.floor(stage))) for each in cell.replicates]
    known = [(mine, floor) for mine, floor in found if mine and floor]
    if not known:
        return None
    differences = [mine[0] / mine[1] - floor[0] / floor[1] for mine, floor in known]
    return make_estimate(differences, *difference_interval(known))


def difference_interval(pairs: Sequence[tuple[Counts, Counts]]) -> tuple[Interval | None, Literal["newcombe", "t"]]:
    """Of the difference of two counted rates, with its method: Newcombe's of one pair, Student's over several."""
    if len(pairs) == 1:
        return newcombe_interval(*pairs[0]), "newcombe"
    noise = fmean(_variance(*mine) + _variance(*its) for mine, its in pairs) ** 0.5
    return t_interval([mine[0] / mine[1] - its[0] / its[1] for mine, its in pairs], noise), "t"


def _counts(rates: Rates | None) -> Counts | None:
    if rates is None or rates.attack_success_rate is None or not rates.attacked_images:
        return None
    return round(rates.attack_success_rate * rates.attacked_images), rates.attacked_images


def _variance(successes: int, images: int) -> float:
    """Of a counted rate, at least half an image away from 0 and from 1."""
    rate = min(max(successes, 0.5), images - 0.5) / images
    return rate * (1 - rate) / images


def verdict(left: Estimate | None, margin: float = ABOVE_FLOOR) -> Verdict | None:
    """Whether a backdoor works, where its whole interval says the same."""
    if left is None or left.low is None or left.high is None:
        return None
    if left.low > margin:
        return "works"
    return "does not" if left.high < margin else "undecided"
