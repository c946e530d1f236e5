"""Finding 4: a few epochs of clean retraining defuse the backdoor. What decides is each backdoor's own floor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from bdray.record import StageName, facts_of
from bdray.results.cells import ABOVE_FLOOR, Cell, Estimate, Study, counts_of, mean_of, seed_means
from bdray.results.trainings import Trainings, joined


@dataclass(frozen=True)
class Defusal:
    """One cell before and after the repair.

    Attributes:
        before, after: attack success rates; None where nothing counts (it failed, diverged or collapsed).
        left: attack success rate above the floor of the same seed and stage, before and after; None without a floor.
        took, trace: see `Cell`, before and after.
        luck: standard deviation of the rates of those that took, and what of it counting test images alone would make
            (the root of the mean of p (1 - p) / n), before and after; None of fewer than two. The rest is the luck of
            training (Jordan 2023, arXiv 2304.01910).
        defused: of the trainings whose backdoor took, in how many it no longer does after the repair.
        woken: of those whose did not, in how many it does.
        cost: clean accuracy after - before, paired within records.
    """

    cell: Cell
    before: Estimate | None
    after: Estimate | None
    left: tuple[Estimate | None, Estimate | None]
    took: tuple[Trainings | None, Trainings | None]
    trace: tuple[Trainings | None, Trainings | None]
    luck: tuple[tuple[float, float] | None, tuple[float, float] | None]
    defused: Trainings | None
    woken: Trainings | None
    cost: Estimate | None


@dataclass(frozen=True)
class Retraining:
    """Finding 4.

    Attributes:
        cells: those that were repaired.
        before: of each cell of poisoned models with a floor, once whatever was done to them later.
        defused, woken: of all trainings, a model that was repaired in several ways once for each.
        cost: clean accuracy after - before over seeds, each the mean over cells that have every seed.
    """

    unanswered: str = ""
    margin: float = ABOVE_FLOOR
    cells: tuple[Defusal, ...] = ()
    before: tuple[Trainings, ...] = ()
    defused: Trainings | None = None
    woken: Trainings | None = None
    cost: Estimate | None = None

    @property
    def took(self) -> Trainings | None:
        """Of all of `before`."""
        return joined(self.before) if self.before else None

    @property
    def measured(self) -> list[Defusal]:
        """Cells of which something counts before the repair."""
        return [cell for cell in self.cells if cell.before]

    @property
    def judged(self) -> list[Defusal]:
        """Those with a floor before and after."""
        return [cell for cell in self.measured if None not in cell.took]

    @property
    def verdicts(self) -> Counter[str]:
        """Of how many cells is said, before the repair, that it takes in `most` trainings, in `few`, or neither."""
        return Counter(each.verdict for each in self.before)

    @property
    def more(self) -> int:
        """How many more trainings of a cell of which nothing is said would tell at best; 0 where there is none."""
        return min((each.more for each in self.before if not each.verdict), default=0)

    @property
    def awake(self) -> list[Defusal]:
        """Cells in which some backdoor that had not taken takes after the repair."""
        return [cell for cell in self.cells if cell.woken and cell.woken.did]

    @property
    def costliest(self) -> Defusal | None:
        known = [(cell.cost.mean, index) for index, cell in enumerate(self.cells) if cell.cost]
        return self.cells[min(known)[1]] if known else None


def retraining(study: Study) -> Retraining:
    """What the repair leaves, and what it costs."""
    if not any(facts.is_repaired for facts in map(facts_of, study.records) if facts):
        return Retraining("Nothing was repaired in this sweep (`repair: none`, or no epochs of it).")
    cells = [_defusal(cell) for cell in study.distinct("finetune") if is_repaired(cell)]
    if not any(cell.after for cell in cells):
        return Retraining("No poisoned condition finished its repair.")
    costs = [costs for cell in study.distinct("finetune") if (costs := _costs(cell))]
    return Retraining(
        cells=tuple(cells),
        before=tuple(took for cell in study.distinct("poison") if (took := cell.took("poison"))),
        defused=_joined([cell.defused for cell in cells]),
        woken=_joined([cell.woken for cell in cells]),
        cost=mean_of(seed_means(costs)),
    )


def _joined(found: Sequence[Trainings | None]) -> Trainings | None:
    known = [each for each in found if each]
    return joined(known) if known else None


def is_repaired(cell: Cell) -> bool:
    """Whether something was done to its models later."""
    return any(facts.is_repaired for each in cell.replicates if (facts := facts_of(each.record)))


def _defusal(cell: Cell) -> Defusal:
    return Defusal(
        cell,
        before=cell.estimate("poison", "attack_success_rate"),
        after=cell.estimate("finetune", "attack_success_rate"),
        left=(above_floor(cell, "poison"), above_floor(cell, "finetune")),
        took=(cell.took("poison"), cell.took("finetune")),
        trace=(cell.trace("poison"), cell.trace("finetune")),
        luck=(luck_of(cell, "poison"), luck_of(cell, "finetune")),
        defused=cell.turned(to=False),
        woken=cell.turned(to=True),
        cost=mean_of(list(_costs(cell).values())),
    )


def luck_of(cell: Cell, stage: StageName) -> tuple[float, float] | None:
    """See `Defusal.luck`."""
    found = [each for each in cell.models(stage) if each.took(stage, cell.took_at)]
    counts = [count for each in found if (count := counts_of(each.rates(stage), "attack_success_rate"))]
    if len(counts) < 2:
        return None
    rates = [(hits / images, images) for hits, images in counts]
    return stdev(rate for rate, _ in rates), math.sqrt(fmean(rate * (1 - rate) / images for rate, images in rates))


def _costs(cell: Cell) -> dict[int, float]:
    """By seed: clean accuracy after - before."""
    found = [(each.record.condition["seed"], each.rates("poison"), each.rates("finetune")) for each in cell.replicates]
    return {seed: after.clean_accuracy - before.clean_accuracy for seed, before, after in found if before and after}


def above_floor(cell: Cell, stage: StageName) -> Estimate | None:
    """Attack success rate - floor after `stage`, paired by seed; None where no seed has both."""
    found = [left for each in cell.models(stage) if (left := each.left(stage))]
    return found[0] if len(found) == 1 else mean_of([each.mean for each in found])
