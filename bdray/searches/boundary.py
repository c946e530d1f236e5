"""Where a metric crosses a level: for each cell of the other axes, the value of one parameter, with an interval.

    search: {method: boundary, parameter: poison.rate, metric: attack_success_rate, at: 0.5}

Each trial is one value of the parameter and one seed, seeds in turn; what is known of a cell's crossing decides the
next value (`bdray.searches.crossing`). Cells are asked about until their interval is narrow enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import Field, field_validator

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.record import TrialRecord
from bdray.searches.base import SEARCHES, Asker, SearchMethod
from bdray.searches.crossing import Crossing, Posterior
from bdray.searches.ground import Axis, Flat, Ground, locate
from bdray.searches.metrics import Metric
from bdray.store.storage import Storage
from bdray.values import freeze

LEAST = 4
"""Trials of a cell before its interval is believed."""

_SURE = 0.95
"""Probability at which a crossing counts as outside the range."""


@SEARCHES.register("boundary")
class Boundary(SearchMethod):
    """For each cell of the other axes, the value of `parameter` at which `metric` crosses the level `at`."""

    SOURCE: ClassVar[str] = "our choice: noisy bisection on a posterior (after Waeber, Frazier and Henderson 2013)"
    TAKES_DISTRIBUTIONS: ClassVar[bool] = True

    parameter: str
    """The axis that is searched; it has `min` and `max` above 0, and is looked at on a logarithmic scale."""
    metric: str = "attack_success_rate"
    """A rate of the record, 0 to 1."""
    at: float = Field(default=0.5, gt=0.0, lt=1.0)
    """The level."""
    rising: bool = True
    """Whether the metric rises with the parameter."""
    within: float = Field(default=1.5, gt=1.0)
    """A cell is settled when the ends of its 95 % interval are at most this factor apart."""
    max_trials: int | None = Field(default=20, ge=LEAST)
    """Trials of a cell at most."""
    max_hours: float | None = Field(default=None, gt=0.0)
    """Hours after which nothing more is asked for; what runs then is finished."""

    @field_validator("metric")
    @classmethod
    def _is_a_metric(cls, name: str) -> str:
        return Metric(name).name

    @property
    def hours(self) -> float | None:
        return self.max_hours

    @property
    def needs_baselines(self) -> bool:
        return Metric(self.metric).needs_twin

    def bound(self, ground: Ground) -> str:
        cells = len(cells_of(self, ground))
        return f"{cells} cells, {LEAST} to {self.max_trials} trials each, until {self.metric} = {self.at:g} is located"

    def start(self, ground: Ground, sweep: Storage, others: Iterable[TrialRecord] = ()) -> Asker:
        return BoundaryAsker(self, ground, others)


@dataclass
class Cell:
    """The values of all other axes.

    Attributes:
        place: them, as `locate` gives them.
        assignment: the same as content of conditions, without the parameter.
        values: the metric that was measured, by condition id.
        asked: ids of all its conditions so far.
    """

    place: Mapping[str, float]
    assignment: Flat
    posterior: Posterior
    values: dict[str, float | None] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    @property
    def crossing(self) -> Crossing:
        return self.posterior.crossing()

    def is_settled(self, method: Boundary) -> bool:
        """No more need, or may, be asked."""
        return (method.max_trials is not None and len(self.asked) >= method.max_trials) or self.is_located(method)

    def is_located(self, method: Boundary) -> bool:
        """Its crossing is known as narrowly as asked."""
        found = self.crossing
        if len(self.values) < LEAST:
            return False
        return found.high - found.low <= math.log10(method.within) or max(found.below, found.above) >= _SURE


def cells_of(method: Boundary, ground: Ground) -> dict[object, Cell]:
    """The cells, by their place; in the order of the other axes.

    Raises:
        SpaceError: another axis is drawn from a distribution too, or the parameter is none with a positive range.
    """
    searched = _searched(method, ground)
    assert searched.distribution is not None
    low, high = math.log10(searched.distribution.min), math.log10(searched.distribution.max)
    cells: dict[object, Cell] = {}
    partial: list[tuple[dict[str, float], Flat]] = [({}, {"seed": ground.seeds[0], **ground.fixed})]
    for axis in ground.axes:
        if axis is searched:
            continue
        grown = []
        for place, assignment in partial:
            rows = [axis.row(assignment, index) for index in range(len(axis.labels))]
            choices = range(len(rows)) if len(rows) > 1 and any(rows) else [0]
            for index in choices:
                more = {axis.name: float(index)} if len(choices) > 1 else {}
                grown.append(({**place, **more}, {**assignment, **rows[index]}))
        partial = grown
    for place, assignment in partial:
        cells[freeze(place)] = Cell(place, assignment, Posterior(low, high, method.at, rising=method.rising))
    return cells


def _searched(method: Boundary, ground: Ground) -> Axis:
    found = next((axis for axis in ground.axes if axis.name == method.parameter), None)
    if found is None or found.distribution is None or found.distribution.min <= 0:
        problem = f"'{method.parameter}' must be a parameter with min and max above 0"
        raise SpaceError(problem, path="search.parameter")
    for axis in ground.axes:
        if axis.name != method.parameter and axis.distribution is not None:
            raise SpaceError("`method: boundary` crosses the other axes: give it values", path=axis.name)
    return found


class BoundaryAsker(Asker):
    """Boundaries under way. What is known of a cell does not depend on the order in which it was told."""

    def __init__(self, method: Boundary, ground: Ground, others: Iterable[TrialRecord] = ()) -> None:
        self._method, self._ground, self._axis = method, ground, _searched(method, ground)
        self.cells = cells_of(method, ground)
        self._metric = Metric(method.metric)
        self._waiting: dict[str, TrialRecord] = {}
        self._twins: dict[str, TrialRecord] = {}
        for record in others:
            self.tell(record)

    def ask(self, count: int) -> Sequence[Condition]:
        asked: list[Condition] = []
        while len(asked) < count:
            open_cells = [cell for cell in self.cells.values() if not cell.is_settled(self._method)]
            # One trial of a cell at a time, as long as there are others: each should know of the one before.
            ready = [cell for cell in open_cells if len(cell.asked) == len(cell.values)] or open_cells
            found = next(filter(None, map(self._next, sorted(ready, key=lambda cell: len(cell.asked)))), None)
            if found is None:
                break
            asked.append(found)
        return asked

    def _next(self, cell: Cell) -> Condition | None:
        """A condition of this cell that was never asked for; None where every one near its crossing was."""
        distribution = self._axis.distribution
        assert distribution is not None
        for turn in range(len(cell.asked), len(cell.asked) + 50):
            value = float(f"{10 ** cell.posterior.next(turn):.3g}")
            value = round(value) if distribution.distribution == "int_uniform" else distribution.rounded(value)
            for shift in range(len(self._ground.seeds)):
                seed = self._ground.seeds[(turn + shift) % len(self._ground.seeds)]
                assignment = {**cell.assignment, **self._axis.number(cell.assignment, value), "seed": seed}
                built = next(iter(self._ground.built([assignment])), None)
                if built is not None and self._ground.wanted(built) and built.condition_id not in cell.asked:
                    cell.asked.add(built.condition_id)
                    return built
        cell.asked |= {f"none {number}" for number in range(self._method.max_trials or 0)}
        return None

    def recall(self, condition: Condition) -> None:
        cell = self._cell(condition)
        if cell is not None and not condition.is_baseline:
            cell.asked.add(condition.condition_id)

    def tell(self, record: TrialRecord) -> None:
        if record.role == "baseline":
            self._twins[record.condition_id] = record
        else:
            self._waiting[record.condition_id] = record
        for condition_id, waiting in list(self._waiting.items()):
            condition = Condition.parse(waiting.condition)
            twin = self._twins.get(condition.baseline().condition_id) if self._metric.needs_twin else None
            if self._metric.needs_twin and twin is None:
                continue
            del self._waiting[condition_id]
            cell = self._cell(condition)
            if cell is None or condition_id in cell.values:
                continue
            value = self._metric.of(waiting, twin) if waiting.status == "finished" else None
            cell.asked.add(condition_id)
            cell.values[condition_id] = value
            if value is not None:
                cell.posterior.observe(math.log10(self._parameter(condition)), value)

    @property
    def finished(self) -> bool:
        return all(cell.is_settled(self._method) for cell in self.cells.values())

    def _parameter(self, condition: Condition) -> float:
        return float(self._ground.flat(condition)[self._method.parameter])

    def _cell(self, condition: Condition) -> Cell | None:
        place = locate(self._ground, condition)
        if place is None:
            return None
        return self.cells.get(freeze({name: float(at) for name, at in place.items() if name != self._axis.name}))
