"""Seeds where they are needed: `seeds: {min: 4, max: 20, until: {metric: took, above: 0.5}}`.

Every cell gets `min` seeds. Then, widest interval first, cells get one seed more whose interval is wider than asked, or
holds the line that is asked about; until all are settled or have `max`.

A rule that stops when an interval looks good prefers luck: t-intervals hold 27 to 77 % after it where trainings are all
or nothing. The intervals here hold 95 % however often they are looked at (`bdray.searches.confidence`), for values
between 0 and 1 of any distribution. They are wide: what `max` seeds cannot reach is refused.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pydantic import Field, model_validator

from bdray.condition import Condition
from bdray.record import TrialRecord
from bdray.registry import Identified
from bdray.searches.base import Asker
from bdray.searches.confidence import confidence_sequence, constant
from bdray.searches.metrics import Metric, twin_id

LEAST = 4
"""Seeds before a cell may be settled."""


class Until(Identified):
    """When a cell has seeds enough."""

    metric: str = "attack_success_rate"
    half_width: float | None = Field(default=None, gt=0.0)
    """The interval of the metric's mean is at most this wide to each side."""
    above: float | None = None
    """The interval lies on one side of this line."""

    @model_validator(mode="after")
    def _asks_something(self) -> Until:
        if self.half_width is None and self.above is None:
            raise ValueError("give half_width or above")
        if (bounds := Metric(self.metric).bounds) is None:
            raise ValueError(f"no interval holds the mean of {self.metric}, which has no bounds: name a rate or `took`")
        if self.above is not None and not bounds[0] < self.above < bounds[1]:
            raise ValueError(f"above: {self.above:g} is not between {bounds[0]:g} and {bounds[1]:g}")
        return self

    def reach(self, count: int) -> float:
        """The half width that `count` seeds have at best."""
        metric = Metric(self.metric)
        least, most = metric.bounds or (0.0, 1.0)
        low, high = constant(1.0 if metric.is_took else 0.5, count)
        return (most - least) * (high - low) / 2

    def can_settle(self, count: int) -> bool:
        """Whether `count` seeds settle a cell where luck is best: all of them alike."""
        least, most = Metric(self.metric).bounds or (0.0, 1.0)
        is_narrow = self.half_width is None or self.reach(count) <= self.half_width
        away = (most - least) * constant(1.0, count)[0]
        return is_narrow and (self.above is None or self.above < least + away or self.above > most - away)


class Replication(Identified):
    """How many seeds a cell gets: 0 to `min - 1`, and more up to `max - 1` where they are needed."""

    min: int = Field(ge=2, le=10_000)
    max: int = Field(le=10_000)
    until: Until

    @model_validator(mode="after")
    def _is_a_range(self) -> Replication:
        if self.max <= self.min:
            raise ValueError("max must be greater than min")
        if not self.until.can_settle(self.max):
            enough = bisect_left(range(10_001), True, lo=self.max, key=self.until.can_settle)
            needed = f"it takes {enough:,}" if enough <= 10_000 else "no number of seeds does"
            raise ValueError(
                f"max: {self.max} seeds cannot settle a cell, however they turn out: they reach "
                f"±{self.until.reach(self.max):.2f} at best; {needed}"
            )
        return self


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and the interval that holds it at every look; without values, all that may be.

    Attributes:
        mean: of those that are clear.
        count: of all seeds.
        unclear: of these, those that may be either.
    """

    mean: float
    low: float
    high: float
    count: int
    unclear: int = 0

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def interval_of(values: Sequence[float | None], metric: Metric) -> Interval:
    """The interval of the mean of a metric. None: unclear whether it took, so it counts as 0 at the low end and as 1 at
    the high end; of another metric not measured, and left out."""
    least, most = metric.bounds or (0.0, 1.0)
    known = [value for value in values if value is not None]
    unclear = len(values) - len(known) if metric.is_took else 0
    low, high = (
        confidence_sequence(
            [((end if value is None else value) - least) / (most - least) for value in (values if unclear else known)]
        )[side]
        for side, end in enumerate((least, most))
    )
    mean, size = fmean(known) if known else math.nan, most - least
    return Interval(mean, least + size * low, least + size * high, len(known) + unclear, unclear)


def why_more(rule: Until, found: Interval) -> str | None:
    """Why a cell needs another seed, in words; None where it is settled."""
    if found.count < LEAST:
        return f"fewer than {LEAST} seeds"
    if rule.half_width is not None and found.half_width > rule.half_width:
        return "wider than asked"
    if rule.above is not None and found.low <= rule.above <= found.high:
        return f"holds {rule.above:g}"
    return None


@dataclass
class _Cell:
    """A cell's first condition, what is asked of it, the cell of its baselines, what came of it with the id of its
    twin, values by seed (None: there is none), and the seeds that were asked for."""

    condition: Condition
    metric: Metric
    baseline_cell: str
    records: dict[int, tuple[TrialRecord, str]] = field(default_factory=dict)
    values: dict[int, float | None] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)

    @property
    def interval(self) -> Interval:
        return interval_of([*self.values.values()], self.metric)


class Replicator(Asker):
    """More seeds for the cells of a plan.

    Args:
        planned: all conditions with the first seeds, which are run in any case.
    """

    def __init__(self, rule: Replication, planned: Iterable[Condition]) -> None:
        self._rule, self._metric = rule, Metric(rule.until.metric)
        self._cells: dict[str, _Cell] = {}
        self._baselines: dict[str, dict[str, TrialRecord]] = {}
        for condition in planned:
            if not condition.is_baseline:
                cell = _Cell(condition, self._metric, condition.baseline().cell_id)
                self._cells.setdefault(condition.cell_id, cell).asked.add(condition.seed)

    def ask(self, count: int) -> Sequence[Condition]:
        ready = [
            cell for cell in self._cells.values() if len(cell.values) == len(cell.asked) and self._needs_more(cell)
        ]
        ready.sort(key=lambda cell: -cell.interval.half_width)
        return [self._next(cell) for cell in ready[:count]]

    def recall(self, condition: Condition, *, is_planned: bool = False) -> None:
        if condition.cell_id in self._cells:
            self._cells[condition.cell_id].asked.add(condition.seed)

    def tell(self, record: TrialRecord) -> None:
        if record.role == "baseline":
            self._baselines.setdefault(record.cell_id, {})[record.condition_id] = record
            for cell in self._cells.values():
                if cell.baseline_cell == record.cell_id:
                    self._look(cell)
        elif record.cell_id in self._cells:
            cell, seed = self._cells[record.cell_id], record.condition["seed"]
            cell.asked.add(seed)
            cell.records[seed] = record, twin_id(Condition.parse(record.condition))
            self._look(cell)

    def _look(self, cell: _Cell) -> None:
        """What its records say, anew: a baseline may have come."""
        baselines = self._baselines.get(cell.baseline_cell, {})
        for seed, (record, twin) in cell.records.items():
            if self._metric.needs_twin and twin not in baselines:
                continue
            value = self._metric.of(record, baselines.get(twin), list(baselines.values()))
            cell.values[seed] = value if record.status == "finished" else None

    @property
    def finished(self) -> bool:
        return not any(len(cell.asked) < self._rule.max and self._is_open(cell) for cell in self._cells.values())

    def _is_open(self, cell: _Cell) -> bool:
        return len(cell.values) < len(cell.asked) or self._needs_more(cell)

    def _needs_more(self, cell: _Cell) -> bool:
        return len(cell.asked) < self._rule.max and why_more(self._rule.until, cell.interval) is not None

    def _next(self, cell: _Cell) -> Condition:
        seed = next(seed for seed in range(self._rule.max) if seed not in cell.asked)
        cell.asked.add(seed)
        return Condition.parse({**cell.condition.content(), "seed": seed})
