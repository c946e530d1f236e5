"""Seeds where they are needed: `seeds: {min: 3, max: 12, until: {metric: attack_success_rate, half_width: 0.05}}`.

Every cell gets `min` seeds. Then, widest interval first, cells get one seed more whose interval is wider than asked, or
holds the line that is asked about; until all are settled or have `max`.

A rule that stops when an interval happens to be narrow prefers samples whose spread is underestimated: with plain 95 %
t-intervals, `min: 3` and `max: 12`, coverage falls to 91 % (simulated). The intervals here are t-intervals at 97.5 %,
which cover 95 % or more after stopping, at every spread that was simulated (`benchmarks/search_simulations.py`; the
level was chosen by the same simulations).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from pydantic import Field, model_validator

from bdray.condition import Condition
from bdray.record import TrialRecord
from bdray.registry import Identified
from bdray.searches.base import Asker
from bdray.searches.metrics import Metric, twin_id

LEVEL = 0.975
"""Of the t-intervals: after sequential stopping they cover 95 %."""


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
        Metric(self.metric)
        return self


class Replication(Identified):
    """How many seeds a cell gets: 0 to `min - 1`, and more up to `max - 1` where they are needed."""

    min: int = Field(ge=2, le=10_000)
    max: int = Field(le=10_000)
    until: Until

    @model_validator(mode="after")
    def _is_a_range(self) -> Replication:
        if self.max <= self.min:
            raise ValueError("max must be greater than min")
        return self


@dataclass(frozen=True)
class Interval:
    """A mean over seeds. `half_width`: of its interval; infinite with fewer than two values."""

    mean: float
    half_width: float
    count: int


def interval_of(values: Sequence[float]) -> Interval:
    """The mean's t-interval at `LEVEL`."""
    from scipy.special import stdtrit

    count = len(values)
    if count < 2:
        return Interval(fmean(values) if values else math.nan, math.inf, count)
    quantile = float(stdtrit(count - 1, (1 + LEVEL) / 2))
    return Interval(fmean(values), quantile * stdev(values) / math.sqrt(count), count)


def why_more(rule: Until, found: Interval) -> str | None:
    """Why a cell needs another seed, in words; None where it is settled."""
    if rule.half_width is not None and found.half_width > rule.half_width:
        return "wider than asked"
    if rule.above is not None and abs(found.mean - rule.above) <= found.half_width:
        return f"holds {rule.above:g}"
    return None


@dataclass
class _Cell:
    """A cell's first condition, its values by seed (None: there is none), and the seeds that were asked for."""

    condition: Condition
    values: dict[int, float | None] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)

    @property
    def interval(self) -> Interval:
        return interval_of([value for _, value in sorted(self.values.items()) if value is not None])


class Replicator(Asker):
    """More seeds for the cells of a plan.

    Args:
        planned: all conditions with the first seeds, which are run in any case.
    """

    def __init__(self, rule: Replication, planned: Iterable[Condition]) -> None:
        self._rule, self._metric = rule, Metric(rule.until.metric)
        self._cells: dict[str, _Cell] = {}
        self._twins: dict[str, TrialRecord] = {}
        self._waiting: dict[str, TrialRecord] = {}
        for condition in planned:
            if not condition.is_baseline:
                self._cells.setdefault(condition.cell_id, _Cell(condition)).asked.add(condition.seed)

    def ask(self, count: int) -> Sequence[Condition]:
        ready = [
            cell for cell in self._cells.values() if len(cell.values) == len(cell.asked) and self._needs_more(cell)
        ]
        ready.sort(key=lambda cell: -cell.interval.half_width)
        return [self._next(cell) for cell in ready[:count]]

    def recall(self, condition: Condition) -> None:
        if condition.cell_id in self._cells:
            self._cells[condition.cell_id].asked.add(condition.seed)

    def tell(self, record: TrialRecord) -> None:
        if record.role == "baseline":
            self._twins[record.condition_id] = record
        elif record.cell_id in self._cells:
            self._waiting[record.condition_id] = record
        for condition_id, waiting in list(self._waiting.items()):
            twin = self._twins.get(twin_id(Condition.parse(waiting.condition))) if self._metric.needs_twin else None
            if self._metric.needs_twin and twin is None:
                continue
            del self._waiting[condition_id]
            cell, seed = self._cells[waiting.cell_id], waiting.condition["seed"]
            cell.asked.add(seed)
            cell.values[seed] = self._metric.of(waiting, twin) if waiting.status == "finished" else None

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
