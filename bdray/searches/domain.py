"""What a search method sees of a search space: its axes, and conditions for what is chosen on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.intensity import levels

Flat = dict[str, Any]
"""Values by dotted condition path."""

MISSING = object()
"""What `lookup` finds at a path that is not there."""

Kind = Literal["uniform", "log_uniform", "int_uniform", "int_log_uniform"]


@dataclass(frozen=True)
class Distribution:
    """Numbers drawn at random: uniformly, or on a logarithmic scale, between `min` and `max` (both included).

    `q` rounds draws to its multiples. `int_uniform` and `int_log_uniform` are whole numbers, and so are the others
    where `min`, `max` and `q` are.
    """

    distribution: Kind
    min: float
    max: float
    q: float | None = None

    def draw(self, unit: float) -> float | int:
        """The value at quantile `unit`, in [0, 1)."""
        if self.distribution == "int_uniform":
            return self.rounded(self.min + math.floor(unit * (self.max - self.min + 1)))
        # Each whole number stands for what is rounded to it, as in Optuna.
        half = 0.5 if self.distribution == "int_log_uniform" else 0.0
        low, high = self.min - half, self.max + half
        if self.is_logarithmic:
            return self.rounded(math.exp(math.log(low) + unit * (math.log(high) - math.log(low))))
        return self.rounded(low + unit * (high - low))

    def rounded(self, value: float) -> float | int:
        """`value` as it may be drawn: a multiple of `q`, or a whole number, between `min` and `max`."""
        value = float(min(max(value, self.min), self.max))
        if self.step is not None:
            first, last = self.multiples
            # Through a decimal string, so that 3 * 0.1 is written 0.3.
            value = float(f"{min(max(round(value / self.step), first), last) * self.step:.12g}")
        is_whole = self.is_int or all(isinstance(number, int) for number in (self.min, self.max, self.q))
        return round(value) if is_whole else value

    def has_between(self, low: float, high: float) -> bool:
        """Whether a value that may be drawn lies between the two, and is neither."""
        if self.step is None:
            return low < high
        first, last = self.multiples
        least = max(math.floor(low / self.step) + 1, first)
        return least * self.step < high and least <= last

    @property
    def step(self) -> float | None:
        """What its values are multiples of."""
        return self.q or (1 if self.is_int else None)

    @property
    def multiples(self) -> tuple[int, int]:
        """The first and the last multiple of `step` between `min` and `max`, as factors of it; none where the first is
        the larger one."""
        step = self.step or 1
        # 0.3 / 0.1 is a little less than 3.
        return math.ceil(self.min / step - 1e-9), math.floor(self.max / step + 1e-9)

    @property
    def is_int(self) -> bool:
        return self.distribution in ("int_uniform", "int_log_uniform")

    @property
    def is_logarithmic(self) -> bool:
        return self.distribution in ("log_uniform", "int_log_uniform")


def lookup(flat: Mapping[str, Any], path: str) -> Any:
    """The value at `path`, None below a null, or a mark that `freeze`d values never equal."""
    value = flat.get(path, MISSING)
    while value is MISSING and "." in path:
        path = path.rpartition(".")[0]
        if flat.get(path, MISSING) is None:
            return None
    return value


class Axis(Protocol):
    """What is chosen at once: a parameter, or a zip group."""

    @property
    def name(self) -> str:
        """The path it sets; of a group, the first one's."""
        ...

    @property
    def distribution(self) -> Distribution | None: ...

    @property
    def labels(self) -> Sequence[str]:
        """Its values in words, in order and all different; none for a distribution."""
        ...

    def row(self, assignment: Flat, index: int) -> Flat:
        """What its value number `index` adds to a condition so far; nothing where it is absent."""
        ...

    def number(self, assignment: Flat, value: float) -> Flat:
        """What a value of its distribution adds to a condition so far; nothing where it is absent."""
        ...

    def drawn(self, assignment: Flat, quantile: float) -> Flat:
        """What it adds at `quantile`, in [0, 1)."""
        ...


class SearchDomain(Protocol):
    """The search space under a method."""

    @property
    def seeds(self) -> Sequence[int]: ...

    @property
    def axes(self) -> Sequence[Axis]:
        """Each after those that its `when` asks about."""
        ...

    @property
    def fixed(self) -> Mapping[str, Any]:
        """What every assignment holds before anything is chosen, but for the seed."""
        ...

    def grid(self) -> list[Flat]:
        """Every assignment of the grid, the excluded ones included; seeds vary slowest, the last axis fastest."""
        ...

    def built(self, assignments: Iterable[Flat]) -> Iterator[Condition]:
        """Their conditions, without the excluded; repeats are not looked for.

        Raises:
            SpaceError: a condition cannot be built.
        """
        ...

    def unique(self, conditions: Iterable[Condition]) -> list[Condition]:
        """The first of each id; the others are counted as duplicates."""
        ...

    def covering(self, conditions: Sequence[Condition], kept: Collection[str] = ()) -> list[Condition]:
        """A few of them, those with the ids `kept` among them, in which all pairs of values meet that meet anywhere."""
        ...

    def flat(self, condition: Condition) -> Mapping[str, Any]:
        """`condition.flat()`, remembered section by section."""
        ...

    def means(self, condition: Condition, path: str, written: Any) -> bool:
        """Whether `written` at this path of a search space is what the condition has there: `20` means 20/255 of the
        brightness."""
        ...

    def wanted(self, condition: Condition) -> bool:
        """Whether `--only` and the like leave it in."""
        ...


def assembled(domain: SearchDomain, choose: Callable[[Axis], float]) -> Flat:
    """The assignment of a cell, with the first seed.

    Args:
        choose: for an axis that is present and leaves a choice, the number of its value, or the value itself where it
            has a distribution.
    """
    assignment: Flat = {"seed": domain.seeds[0], **domain.fixed}
    for axis in domain.axes:
        if axis.distribution is not None:
            if axis.number(assignment, axis.distribution.min):
                assignment.update(axis.number(assignment, choose(axis)))
            continue
        rows = [axis.row(assignment, index) for index in range(len(axis.labels))]
        if any(rows):
            assignment.update(rows[int(choose(axis)) if len(rows) > 1 else 0])
    return assignment


def locate(domain: SearchDomain, condition: Condition) -> dict[str, float] | None:
    """Where a condition lies in the space, whatever its seed: for each axis that is present and leaves a choice, the
    number of its value, or of a distribution the value itself. None where it does not lie in the space."""
    place = dict[str, float]()
    assignment: Flat = {"seed": domain.seeds[0], **domain.fixed}
    for axis in domain.axes:
        added: Flat = {}
        if axis.distribution is not None:
            if axis.number(assignment, axis.distribution.min):
                number = _number(domain, condition, axis.name, axis.distribution)
                if number is None:
                    return None
                place[axis.name] = number
                added = axis.number(assignment, number)
        else:
            rows = [axis.row(assignment, index) for index in range(len(axis.labels))]
            # A value may say more than another one and agree with it.
            fitting = [index for index, row in enumerate(rows) if _agrees(domain, condition, row)]
            if not fitting:
                return None
            index = max(fitting, key=lambda number: len(rows[number]))
            added = rows[index]
            place |= {axis.name: index} if len(rows) > 1 and any(rows) else {}
        assignment.update(added)
    try:
        built = list(domain.built([assignment]))
    except SpaceError:
        return None
    return place if built and built[0].cell_id == condition.cell_id else None


def _number(domain: SearchDomain, condition: Condition, path: str, distribution: Distribution) -> float | None:
    """What was drawn where a condition has its value at `path`; None: nothing that may be."""
    value = lookup(domain.flat(condition), path)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # What is above 1 may be levels of what the condition has as a fraction.
    numbers = (distribution.rounded(levels(value)), value) if distribution.max > 1 else (value,)
    fitting = (number for number in numbers if distribution.min <= number <= distribution.max)
    return next((number for number in fitting if domain.means(condition, path, number)), None)


def _agrees(domain: SearchDomain, condition: Condition, row: Flat) -> bool:
    return all(domain.means(condition, path, value) for path, value in row.items())


def is_finite(domain: SearchDomain) -> bool:
    """Whether the space is a grid: no axis is drawn from a distribution."""
    return all(axis.distribution is None for axis in domain.axes)


def drawn(domain: SearchDomain, quantiles: Sequence[float], seed: int) -> Flat:
    """The assignment at one quantile an axis."""
    assignment: Flat = {"seed": seed, **domain.fixed}
    for axis, quantile in zip(domain.axes, quantiles, strict=True):
        assignment.update(axis.drawn(assignment, quantile))
    return assignment
