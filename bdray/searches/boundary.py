"""Where an attack tips over: for each cell of the other axes, the value of one parameter, with an interval.

    search: {method: boundary, parameter: poison.rate}

Each trial is one value of the parameter and one seed; what is known of a cell's crossing decides the next value
(`bdray.searches.crossing`). Cells are asked about until their interval is narrow enough. Of `took`, the crossing is
where a share `at` of the trainings take, and every trial of a cell has a seed of its own; the floor comes from the
baselines of the first three. Of a rate, it is where that crosses `at`, and the seeds are taken in turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from operator import itemgetter
from typing import Any, ClassVar

from pydantic import Field, field_validator

from bdray.condition import TEST_TRIGGER, TRAINING_ONLY, Condition, flatten
from bdray.errors import SpaceError, nearest
from bdray.record import FloorRecord, TrialRecord
from bdray.results.took import TOOK_AT
from bdray.searches.base import SEARCHES, Asker, SearchMethod, condition_of
from bdray.searches.crossing import Crossing, Level, Posterior, Share
from bdray.searches.domain import Axis, Flat, SearchDomain, locate
from bdray.searches.metrics import TOOK, Metric
from bdray.store.storage import Storage
from bdray.values import freeze

LEAST = 4
"""Trials of a cell before its interval is believed."""

NARROWEST = 4.0
"""Of `took`, how near to each other the ends of an interval may be asked to be for it to hold its level then too. Asked
for a factor of 3, those few that were as narrow where an edge is gentle held less often (`docs/statistics.md`)."""

FLOORS = 3
"""Baselines of a cell, which all of its trials are compared with."""

_SURE = 0.95
"""Probability at which a crossing counts as outside the range."""

_HOPELESS = 20
"""Trials that told nothing (failed, collapsed, unclear) after which a cell is given up, if they are the most."""


@SEARCHES.register("boundary")
class Boundary(SearchMethod):
    """For each cell of the other axes, the value of `parameter` at which `metric` crosses `at`."""

    SOURCE: ClassVar[str] = (
        "of `took`: Kontsevich and Tyler 1999, QUEST+ (Watson 2017); of a rate, our choice: noisy bisection on a "
        "posterior (after Waeber, Frazier and Henderson 2013)"
    )
    TAKES_DISTRIBUTIONS: ClassVar[bool] = True

    parameter: str
    """The axis that is searched; it has `min` and `max` above 0, and is looked at on a logarithmic scale."""
    metric: str = TOOK
    """`took` (`repaired/took`: after the repair), or a rate of the record, 0 to 1."""
    at: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Of `took`: the share of trainings. Of a rate: the level."""
    took_at: float = Field(default=TOOK_AT, gt=0.0, lt=1.0)
    """A training took where its (ASR - floor) / (1 - floor) lies above this, by its interval over the test images."""
    rising: bool = True
    """Whether the metric rises with the parameter."""
    within: float | None = Field(default=None, gt=1.0)
    """A cell is settled when the ends of its 95 % interval are at most this factor apart; null: 4 of `took`, 1.5 of a
    rate."""
    max_trials: int | None = Field(default=20, ge=LEAST)
    """Trials of a cell at most; null: as many as it takes."""
    max_hours: float | None = Field(default=None, gt=0.0)
    """Hours after which nothing more is asked for; what runs then is finished."""

    @field_validator("metric")
    @classmethod
    def _is_a_metric(cls, name: str) -> str:
        if Metric(name).bounds is None:
            raise ValueError(f"no crossing is located of {name}, which has no bounds: name a rate or `took`")
        return name

    @property
    def hours(self) -> float | None:
        return self.max_hours

    @property
    def factor(self) -> float:
        """`within`, also where nothing is said."""
        return self.within or (NARROWEST if Metric(self.metric).is_took else 1.5)

    @property
    def needs_baselines(self) -> bool:
        return Metric(self.metric).needs_twin

    @property
    def looks_at(self) -> Sequence[tuple[str, Metric]]:
        return [("metric", Metric(self.metric))]

    def bound(self, domain: SearchDomain) -> str:
        count, most = len(cells_of(self, domain)), self.max_trials
        cells = f"{count} cell{'s' if count != 1 else ''}"
        if absent := len(_places(_searched(self, domain), domain)) - count:
            cells += f" ({absent} more without {self.parameter} left out)"
        if most is None:
            trials = f"{LEAST} trials each or more"
        else:
            trials = f"{LEAST} to {most} trials each" if most > LEAST else f"{most} trials each"
        if not Metric(self.metric).is_took:
            return f"{cells}, {trials}, until {self.metric} = {self.at:g} is located"
        return f"{cells}, {trials} with {FLOORS} baselines, until {self.at:g} of the trainings take"

    def twinned(self, domain: SearchDomain, conditions: Sequence[Condition]) -> Sequence[Condition]:
        if not Metric(self.metric).is_took:
            return conditions
        first = [*islice(_seeds(domain), FLOORS)]
        return [condition for condition in conditions if condition.seed in first]

    def may_ask(self, domain: SearchDomain, condition: Condition) -> bool:
        place = locate(domain, condition)
        return place is not None and self.parameter in place

    def examples(self, domain: SearchDomain) -> Sequence[Condition]:
        """Each cell at some values of the parameter: baselines are tested with the attacks of all of them."""
        axis = _searched(self, domain)
        assert axis.distribution is not None
        is_tested = self.parameter.startswith(("trigger.", "poison."))
        is_tested = is_tested and self.parameter.removeprefix("poison.") not in TRAINING_ONLY
        values = [axis.distribution.draw(step / 8) for step in ((1, 3, 5, 7) if is_tested else (4,))]
        cells = cells_of(self, domain).values()
        rows = ({**cell.assignment, **axis.number(cell.assignment, value)} for cell in cells for value in values)
        return list(domain.built(rows))

    def start(self, domain: SearchDomain, sweep: Storage, others: Iterable[TrialRecord] = ()) -> Asker:
        return BoundaryAsker(self, domain, others)


@dataclass
class Cell:
    """The values of all other axes.

    Attributes:
        place: them, as `locate` gives them.
        assignment: the same as content of conditions, without the parameter.
        values: the metric that was measured, by condition id; None where it was not.
        records: what came of its conditions, by their id.
        asked: ids of all its conditions so far, and their seeds.
        at: values of the parameter by those ids, as the space writes them.
        twins: ids of the baselines that its trials may be compared with.
        floors: those of them that are run for it.
        is_exhausted: there is no condition left to ask for.
    """

    place: Mapping[str, float]
    assignment: Flat
    posterior: Posterior
    values: dict[str, float | None] = field(default_factory=dict)
    records: dict[str, TrialRecord] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)
    twins: set[str] = field(default_factory=set)
    floors: set[str] = field(default_factory=set)
    is_exhausted: bool = False

    @property
    def crossing(self) -> Crossing:
        return self.posterior.crossing()


def cells_of(method: Boundary, domain: SearchDomain) -> dict[object, Cell]:
    """The cells, by their place; in the order of the other axes. Where the parameter is absent there is none.

    Raises:
        SpaceError: another axis is drawn from a distribution too, or the parameter is none with a positive range, or
            is absent everywhere.
    """
    searched = _searched(method, domain)
    assert searched.distribution is not None
    least, cells = searched.distribution.min, dict[object, Cell]()
    for place, assignment in _places(searched, domain):
        if searched.number(assignment, least):
            cells[freeze(place)] = Cell(place, assignment, _nothing_known(method, searched))
    if not cells:
        raise SpaceError("no cell has it: nothing meets its `when`", path=method.parameter)
    return cells


def _places(searched: Axis, domain: SearchDomain) -> list[tuple[dict[str, float], Flat]]:
    """Values of all other axes, as `locate` gives them and as content of conditions."""
    partial: list[tuple[dict[str, float], Flat]] = [({}, {"seed": domain.seeds[0], **domain.fixed})]
    for axis in domain.axes:
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
    return partial


def _nothing_known(method: Boundary, searched: Axis) -> Posterior:
    assert searched.distribution is not None
    low, high = math.log10(searched.distribution.min), math.log10(searched.distribution.max)
    return (Share if Metric(method.metric).is_took else Level)(low, high, method.at, rising=method.rising)


def _seeds(domain: SearchDomain) -> Iterator[int]:
    """Those of the space, then new ones."""
    return chain(domain.seeds, count(max(domain.seeds) + 1))


def _searched(method: Boundary, domain: SearchDomain) -> Axis:
    found = next((axis for axis in domain.axes if axis.name == method.parameter), None)
    if found is None or found.distribution is None or found.distribution.min <= 0:
        fit = [axis.name for axis in domain.axes if axis.distribution is not None and axis.distribution.min > 0]
        problem = f"'{method.parameter}' must be a parameter with min and max above 0"
        raise SpaceError(f"{problem}; {nearest(method.parameter, fit)}", path="search.parameter")
    for axis in domain.axes:
        if axis.name != method.parameter and axis.distribution is not None:
            raise SpaceError("`method: boundary` crosses the other axes: give it values", path=axis.name)
    return found


class BoundaryAsker(Asker):
    """Boundaries under way. What is known of a cell does not depend on the order in which it was told."""

    def __init__(self, method: Boundary, domain: SearchDomain, others: Iterable[TrialRecord] = ()) -> None:
        self._method, self._domain, self._axis = method, domain, _searched(method, domain)
        self.cells = cells_of(method, domain)
        self._metric = Metric(method.metric)
        self._baselines: dict[str, TrialRecord] = {}
        for record in others:
            self.tell(record)
        for cell in self.cells.values():
            # What lacks its baseline is as good as unknown, and may be asked for.
            cell.asked = {name: seed for name, seed in cell.asked.items() if name in cell.values}

    def is_settled(self, cell: Cell) -> bool:
        """No more of it need, or may, be asked."""
        told = sum(value is not None for value in cell.values.values())
        is_hopeless = len(cell.values) - told >= max(_HOPELESS, told)
        most = self._method.max_trials or math.inf
        return cell.is_exhausted or is_hopeless or len(cell.asked) >= most or self.is_located(cell)

    def is_located(self, cell: Cell) -> bool:
        """Its crossing is known as narrowly as asked, or as the values that the parameter takes can tell."""
        found, distribution = cell.crossing, self._axis.distribution
        assert distribution is not None
        if len(cell.values) < LEAST:
            return False
        is_narrow = found.high - found.low <= math.log10(self._method.factor)
        is_outside = max(found.below, found.above) >= _SURE
        return is_narrow or is_outside or not distribution.has_between(10**found.low, 10**found.high)

    def ask(self, count: int) -> Sequence[Condition]:
        asked: list[Condition] = []
        while len(asked) < count:
            open_cells = [cell for cell in self.cells.values() if not self.is_settled(cell)]
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
        for step, look in enumerate(cell.posterior.looks(len(cell.asked))):
            value = distribution.rounded(float(f"{10**look:.3g}"))
            for seed in self._seeds_of(cell, len(cell.asked) + step):
                assignment = {**cell.assignment, **self._axis.number(cell.assignment, value), "seed": seed}
                built = next(iter(self._domain.built([assignment])), None)
                if built is not None and self._domain.wanted(built) and built.condition_id not in cell.asked:
                    self._note(cell, built, value)
                    return built
        cell.is_exhausted = True
        return None

    def _seeds_of(self, cell: Cell, turn: int) -> Iterable[int]:
        """Seeds that the next trial may have, the preferred one first."""
        if self._metric.is_took:
            used = set(cell.asked.values())
            return islice((seed for seed in _seeds(self._domain) if seed not in used), 1)
        seeds = self._domain.seeds
        return (seeds[(turn + shift) % len(seeds)] for shift in range(len(seeds)))

    def _note(self, cell: Cell, condition: Condition, value: float) -> None:
        twin = condition.baseline().condition_id
        cell.at[condition.condition_id] = value
        cell.asked[condition.condition_id] = condition.seed
        cell.twins.add(twin)
        if self._method.twinned(self._domain, [condition]):
            cell.floors.add(twin)

    def recall(self, condition: Condition, *, is_planned: bool = False) -> None:
        found = self._cell(condition)
        if found is not None and not condition.is_baseline:
            self._note(found[0], condition, found[1])

    def tell(self, record: TrialRecord) -> None:
        if record.role == "baseline":
            self._baselines[record.condition_id] = record
            for cell in self.cells.values():
                if record.condition_id in cell.twins:
                    self._look(cell)
            return
        condition = condition_of(record)
        found = None if condition is None else self._cell(condition)
        if condition is not None and found is not None and record.condition_id not in found[0].records:
            self._note(found[0], condition, found[1])
            found[0].records[record.condition_id] = record
            self._look(found[0])

    def _look(self, cell: Cell) -> None:
        """What its records say, anew: another baseline may have changed what counts as taken."""
        cell.values, cell.posterior = {}, _nothing_known(self._method, self._axis)
        for name, record in sorted(cell.records.items()):
            condition = Condition.parse(record.condition)
            twin = self._baselines.get(condition.baseline().condition_id)
            if self._metric.is_took:
                floors = self._floors(cell, condition)
                if not floors and not cell.floors <= self._baselines.keys():
                    continue
                value = self._metric.took(record, *floors, at=self._method.took_at)
            elif self._metric.needs_twin and twin is None:
                continue
            else:
                value = self._metric.of(record, twin)
            cell.values[name] = value = value if record.status == "finished" else None
            if value is not None:
                cell.posterior.observe(math.log10(cell.at[name]), value)

    def _floors(self, cell: Cell, condition: Condition) -> list[FloorRecord]:
        """What its baselines do under the condition's attack; where the parameter is part of that, under the nearest
        one that they were tested with."""
        found = []
        for name in sorted(cell.twins & self._baselines.keys()):
            far = [
                (_distance(floor, condition, self._method.parameter), floor) for floor in self._baselines[name].floors
            ]
            near = [(distance, floor) for distance, floor in far if distance is not None]
            found += [min(near, key=itemgetter(0))[1]] if near else []
        return found

    @property
    def finished(self) -> bool:
        return all(map(self.is_settled, self.cells.values()))

    def _cell(self, condition: Condition) -> tuple[Cell, float] | None:
        """The cell that a condition lies in, and its value of the parameter."""
        place = locate(self._domain, condition)
        if place is None or self._axis.name not in place:
            return None
        value = place.pop(self._axis.name)
        cell = self.cells.get(freeze({name: float(at) for name, at in place.items()}))
        return None if cell is None else (cell, value)


def _distance(floor: FloorRecord, condition: Condition, path: str) -> float | None:
    """How far the attack of a floor is from a condition's, in the logarithm of the parameter at `path`; None where
    anything else differs."""
    if floor.probe == condition.attack:
        return 0.0
    trigger = condition.test_trigger and condition.test_trigger.model_dump(mode="json")
    tested, path = {**condition.content(), "trigger": trigger}, path.removeprefix("poison.test_")
    own, other = map(_attack, (tested, {"trigger": floor.trigger, "poison": floor.poison}))
    if floor.variation != "whole" or path not in own.keys() & other.keys() or {**own, path: other[path]} != other:
        return None
    return abs(math.log(other[path] / own[path]))


def _attack(content: Mapping[str, Any]) -> Flat:
    """What a test set sees of an attack, by path."""
    unseen = {*TRAINING_ONLY, TEST_TRIGGER}
    poison = {name: value for name, value in content["poison"].items() if name not in unseen}
    return flatten({"trigger": content["trigger"], "poison": poison})
