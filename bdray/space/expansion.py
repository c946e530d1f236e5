"""From the grammar of a search space to its conditions: crossing, `when`, `zip`, `exclude`, `include`, baselines.

    units (parameters and zip groups, each after those its `when` asks about)
      -> assignments (flat paths)  -> exclude  -> conditions  + include  + baselines  -> only

Everything is deterministic: axes vary in the order of the file, the last one fastest, seeds slowest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from bdray.condition import Condition
from bdray.errors import ConditionError, SpaceError, nearest
from bdray.searches import Planned
from bdray.searches.domain import Distribution, Flat, SearchDomain
from bdray.searches.random import Random
from bdray.space.axes import Parameter, Rule, crossed, spread
from bdray.space.building import SECTIONS, Builder, Flats, located, merge, never, no_match, placing
from bdray.space.covering import covering_subset
from bdray.space.grammar import Grammar
from bdray.space.named_classes import NamedClasses
from bdray.space.reachable import unreachable
from bdray.space.source import Located, Where
from bdray.space.written import NAME_KEYS, Written
from bdray.values import freeze, show

MAX_CONDITIONS = 200_000
"""More than anybody runs; stops a grid that would fill the memory."""

EXAMPLES = 40
"""Cells that are drawn to check a space whose conditions are only known as the sweep goes on."""

MAX_CROSSED = 20_000
"""Combinations of listed values that are looked at, one by one, for a rule that no drawn condition meets."""

MAX_DRAWS = 2_000
"""Conditions that are drawn where `only` leaves none of those."""


@dataclass(frozen=True)
class Expansion:
    """The conditions of a search space, and how they came about.

    Attributes:
        grammar: what is left of it without what only spoke of paths that the command line replaced.
        conditions: unique by `condition_id`.
        excluded: how many assignments each `exclude` rule matched.
        duplicates: how many assignments meant a condition that was there already.
        twins: ids of the unpoisoned twins that were added.
        unfiltered: the conditions before `only`.
        domain: what the search method works on.
        examples: where the method decides on results: some conditions that it might ask for.
        crossed: what the listed values come to together; without what is drawn, and without seeds. Empty where that is
            not asked for, or is too much to look at.
    """

    grammar: Grammar
    conditions: tuple[Condition, ...]
    excluded: tuple[int, ...]
    duplicates: int
    twins: frozenset[str]
    unfiltered: tuple[Condition, ...]
    domain: SearchDomain
    examples: tuple[Condition, ...]
    crossed: tuple[Flat, ...]


class Unit:
    """Parameters that advance together: one, or a zip group.

    Args:
        classes: how classes are compared, where the space names some.
    """

    def __init__(self, members: Sequence[Parameter], classes: NamedClasses | None = None) -> None:
        self.members, self._match = members, classes.match if classes else Rule.matches
        if len(members) > 1:
            self.members = [unit.members[0] for unit in in_order([Unit([member], classes) for member in members])]
        self.paths = frozenset[str]().union(*(member.paths for member in members))
        asks = frozenset[str]().union(*(member.asks for member in members))
        needed = classes.needed_by(asks) - self.paths if classes else frozenset[str]()
        self.asks = (asks - self.paths if len(members) > 1 else asks) | needed
        self._plain = len(members) == 1 and members[0].when is None

    @property
    def name(self) -> str:
        return self.members[0].path

    @property
    def distribution(self) -> Distribution | None:
        return self.members[0].distribution

    @cached_property
    def labels(self) -> list[str]:
        texts = [" / ".join(show(value) for value in values) for values in zip(*self._values(), strict=True)]
        return [text if texts.count(text) == 1 else f"{text} #{index}" for index, text in enumerate(texts)]

    def _values(self) -> list[list[Any]]:
        return [[value.plain() for value in member.values] for member in self.members]

    def rows(self, assignment: Flat) -> list[Flat]:
        """What it adds to a condition so far, without repeats; one empty row where it is absent."""
        if self._plain:
            return list(self.members[0].rows)
        rows = (self.row(assignment, index) for index in range(len(self.members[0].rows)))
        return list({freeze(row): row for row in rows}.values())

    def row(self, assignment: Flat, index: int) -> Flat:
        """What its value number `index` adds to a condition so far."""
        row: Flat = {}
        for member in self.members:
            if member.when is None or self._match(member.when, {**assignment, **row}):
                row.update(member.rows[index])
        return row

    def number(self, assignment: Flat, value: float) -> Flat:
        """What a value of its distribution adds to a condition so far."""
        first = self.members[0]
        return {first.path: value} if first.when is None or self._match(first.when, assignment) else {}

    def drawn(self, assignment: Flat, quantile: float) -> Flat:
        """What it adds at `quantile`, in [0, 1)."""
        if self.distribution is None:
            return self.row(assignment, int(quantile * len(self.members[0].rows)))
        return self.number(assignment, self.distribution.draw(quantile))

    def waits_for(self, other: Unit) -> bool:
        # Asking about `trigger.name` also asks about a `trigger` that may be null.
        return any(ask == path or ask.startswith(f"{path}.") for ask in self.asks for path in other.paths)


def in_order(units: Iterable[Unit]) -> list[Unit]:
    """Each unit after those that set what its `when` asks about; otherwise the order stays.

    Raises:
        SpaceError: a cycle; names the parameters.
    """
    waiting, ordered = list(units), list[Unit]()
    while waiting:
        ready = next((unit for unit in waiting if not any(map(unit.waits_for, waiting))), None)
        if ready is None:
            members = [member for unit in waiting for member in unit.members if member.when]
            names = ", ".join(member.path for member in members)
            raise members[0].error(f"the `when` of these parameters ask about each other in a circle: {names}")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def expand(grammar: Grammar) -> Expansion:
    """The conditions of a search space.

    Raises:
        SpaceError: whatever is wrong with the grammar or a condition; points to the line.
    """
    _check_conflicts(grammar)
    beside = Path(grammar.root.where.file).parent
    builder = Builder(grammar.data_roots, beside)
    classes = NamedClasses(grammar, builder)
    return _Expander(_possible_only(grammar, classes), builder, classes, beside).run()


def _check_conflicts(grammar: Grammar) -> None:
    """No path is given twice; only a parameter with a `when` may take the place of a fixed value."""
    taken: dict[str, tuple[str, Where]] = {path: ("fixed", node.key) for path, node in grammar.fixed.items()}
    for parameter in grammar.parameters.values():
        for path in parameter.paths:
            for other, (role, where) in taken.items():
                same = path == other and (role != "fixed" or parameter.when is None)
                if same or crossed(path, other):
                    line = f" on line {where.line}" if where.line else ""
                    raise parameter.error(f"'{other}' is {role}{line} already: give it in one of the two places")
        taken.update(dict.fromkeys(parameter.paths, ("a parameter", parameter.key)))


def _possible_only(grammar: Grammar, classes: NamedClasses) -> Grammar:
    """Every `when` must be possible; parameters that only the command line made impossible go."""
    loosened = grammar.loosened
    while dead := next((p for p in grammar.parameters.values() if _impossible(p, grammar, classes, loosened)), None):
        grammar = grammar.without(dead.path)
        loosened |= {dead.path, *dead.paths}
    return grammar


def _impossible(parameter: Parameter, grammar: Grammar, classes: NamedClasses, loosened: Collection[str]) -> bool:
    for path, entry in parameter.when.entries.items() if parameter.when else ():
        values, open_ended = grammar.possible(path)
        values = classes.meant(path, values)
        named = f"{path.partition('.')[0]}.{NAME_KEYS.get(path.partition('.')[0])}"
        names = grammar.possible(named)[0] or [None]
        flats = ({named: name, path: value} for name in names for value in values)
        if open_ended or any(parameter.when.wants(path, flat) for flat in flats if parameter.when):
            continue
        if path in loosened:
            return True
        owner = f"{parameter.path}.when.{path}"
        if not values:
            known = {"seed", *grammar.fixed, *(p for other in grammar.parameters.values() for p in other.paths)}
            raise entry.error(f"nothing sets '{path}'; {nearest(path, known)}", owner, at_key=True)
        raise entry.error(f"can never be met: {never(path, entry, values)}", owner)
    return False


class _Expander:
    """The work of `expand`, with what it counts on the way: the `SearchDomain` of the search method."""

    def __init__(self, grammar: Grammar, builder: Builder, classes: NamedClasses, beside: Path) -> None:
        self.grammar, self.builder, self.classes, self.flats = grammar, builder, classes, Flats()
        self._beside = beside
        self._written: dict[tuple[str, Any], Written] = {}
        self.fixed: Flat = {}
        for path, node in grammar.fixed.items():
            self.fixed.update(spread(path, node.plain()))
        self.axes: Sequence[Unit] = ()
        self.excluded = dict.fromkeys(grammar.exclude, 0)
        self.unbuilt: list[Flat] = []
        self.duplicates = 0

    def run(self) -> Expansion:
        chosen = self._choose()
        exclude = self._check_exclude(chosen)
        is_planned = isinstance(self.grammar.search, Planned)
        examples = () if is_planned else self._examples(chosen)
        conditions = self.unique([*(chosen if is_planned else ()), *self._included()])
        twins = twins_of(conditions) if self.grammar.baselines else []
        rank = {seed: index for index, seed in enumerate(self.grammar.seeds)}
        conditions = sorted([*conditions, *twins], key=lambda c: rank.get(c.seed, len(rank)))
        return Expansion(
            grammar=replace(self.grammar, exclude=exclude),
            conditions=tuple(self._chosen(conditions, may_be_empty=not is_planned)),
            excluded=tuple(self.excluded[rule] for rule in exclude),
            duplicates=self.duplicates,
            twins=frozenset(twin.condition_id for twin in twins),
            unfiltered=tuple(conditions),
            domain=self,
            examples=examples,
            crossed=self.crossed,
        )

    # Which cells there are.

    def _choose(self) -> list[Condition]:
        grouped = {path: group for group in self.grammar.zip for path in group}
        groups = dict.fromkeys(grouped.get(path, (path,)) for path in self.grammar.parameters)
        self.axes = in_order(
            [Unit([self.grammar.parameters[member] for member in group], self.classes) for group in groups]
        )
        method = self.grammar.search
        for parameter in self.grammar.parameters.values():
            if parameter.distribution is not None and not method.TAKES_DISTRIBUTIONS:
                raise parameter.error(f"min and max need `search.method: random`; the method is {method.name}")
        if not self.grammar.parameters and self.grammar.include and method.IS_EXHAUSTIVE:
            return []
        if not isinstance(method, Planned):
            method = Random(max_trials=EXAMPLES * len(self.grammar.seeds))
        return list(method.conditions(self))

    def _examples(self, chosen: Sequence[Condition]) -> tuple[Condition, ...]:
        """What `only` leaves of some conditions that the search may ask for; none where even many draws have none."""
        method = self.grammar.search
        with placing(self.grammar):
            asked = [*(one for one in chosen if method.may_ask(self, one)), *method.examples(self)]
        found = {condition.condition_id: condition for condition in asked}
        for rule in self.grammar.only:
            known = (*found.values(), *self._included())
            if error := unreachable(rule, self.grammar, known, "only", "leaves nothing", crossed=self.crossed):
                raise error
        if not any(map(self.wanted, found.values())):
            drawn = Random(max_trials=MAX_DRAWS).conditions(self)
            more = (one for one in drawn if self.wanted(one) and method.may_ask(self, one))
            found = {c.condition_id: c for c in islice(more, EXAMPLES * len(self.seeds))}
        return tuple(filter(self.wanted, found.values()))

    @property
    def seeds(self) -> Sequence[int]:
        return self.grammar.seeds

    def grid(self) -> list[Flat]:
        assignments = [{"seed": seed, **self.fixed} for seed in self.grammar.seeds]
        for unit in self.axes:
            grown: list[Flat] = []
            for assignment in assignments:
                grown += [{**assignment, **row} for row in unit.rows(assignment)]
                if len(grown) > MAX_CONDITIONS:
                    raise self.grammar.root.error(f"the grid has more than {MAX_CONDITIONS:,} conditions", "parameters")
            assignments = grown
        # Entries of a `when` may be possible one by one and yet never together.
        for parameter in self.grammar.parameters.values():
            if parameter.when is None or any(self.classes.match(parameter.when, one) for one in assignments):
                continue
            if self.grammar.loosened.isdisjoint(parameter.asks):
                problem = f"can never be met: no condition has {parameter.when}"
                raise parameter.when.error(problem, f"{parameter.path}.when")
            self.grammar = self.grammar.without(parameter.path)
        return assignments

    @cached_property
    def crossed(self) -> tuple[Flat, ...]:
        """See `Expansion`."""
        if self.grammar.search.IS_EXHAUSTIVE:
            return ()
        assignments = [self.fixed]
        for unit in self.axes:
            grown: list[Flat] = []
            for assignment in assignments:
                if self._is_drawn(unit, assignment):
                    grown.append({path: value for path, value in assignment.items() if path not in unit.paths})
                else:
                    grown += [{**assignment, **row} for row in unit.rows(assignment)]
                if len(grown) > MAX_CROSSED:
                    return ()
            assignments = grown
        return tuple(assignments)

    def _is_drawn(self, unit: Unit, assignment: Flat) -> bool:
        """Whether a draw decides on what a unit adds, or on whether it is there."""
        whens = (member.when for member in unit.members if member.when)
        return unit.distribution is not None or any(self.classes.match(when, assignment) is None for when in whens)

    def built(self, assignments: Iterable[Flat]) -> Iterator[Condition]:
        return self._built(assignment for assignment in assignments if not self._excluded(assignment))

    def covering(self, conditions: Sequence[Condition], kept: Collection[str] = ()) -> list[Condition]:
        return pairwise_subset(conditions, self.flats, kept)

    def flat(self, condition: Condition) -> Mapping[str, Any]:
        return self.flats(condition)

    def means(self, condition: Condition, path: str, written: Any) -> bool:
        key = path, freeze(written)
        if key not in self._written:
            self._written[key] = Written(path, [written], self._beside)
        return bool(self._written[key].means(self.flats(condition)))

    def wanted(self, condition: Condition) -> bool:
        return all(rule.matches(self.flats(condition)) for rule in self.grammar.only)

    # From assignments to conditions.

    def _excluded(self, flat: Flat, *, built: bool = False) -> bool:
        """Whether some rule matches; counts every rule that does. Asked before building too, so that combinations
        which cannot be built can be excluded."""
        matching = [rule for rule in self.grammar.exclude if self.classes.match(rule, flat)]
        for rule in matching:
            self.excluded[rule] += 1
        if matching and not built:
            self.unbuilt.append(flat)
        return bool(matching)

    def _built(self, assignments: Iterable[Flat], cell: Mapping[str, Located] | None = None) -> Iterator[Condition]:
        """The conditions of these assignments, without the excluded; those of an included `cell` are all kept."""
        for assignment in assignments:
            try:
                condition = self.builder(assignment)
            except ConditionError as error:
                raise located(error, assignment, self.grammar, cell or {}) from None
            if cell is not None or not (self.grammar.exclude and self._excluded(self.flats(condition), built=True)):
                yield condition

    def unique(self, conditions: Iterable[Condition]) -> list[Condition]:
        unique: dict[str, Condition] = {}
        for condition in conditions:
            if unique.setdefault(condition.condition_id, condition) is not condition:
                self.duplicates += 1
        return list(unique.values())

    def _included(self) -> Iterator[Condition]:
        for cell in self.grammar.include:
            added: Flat = {}
            for path, node in cell.items():
                added.update(spread(path, node.plain()))
            yield from self._built((merge({"seed": s, **self.fixed}, added) for s in self.grammar.seeds), cell)

    # What must have mattered.

    def _check_exclude(self, chosen: Sequence[Condition]) -> tuple[Rule, ...]:
        used = []
        owner, problem = "exclude", "matches no condition"
        for rule, count in self.excluded.items():
            error: SpaceError | None = None
            if not count and not self._matches_unbuilt(rule):
                if self.grammar.search.IS_EXHAUSTIVE:
                    error = no_match(rule, chosen, owner, problem)
                else:
                    error = unreachable(rule, self.grammar, chosen, owner, problem, crossed=self.crossed)
            if error is None:
                used.append(rule)
            elif self.grammar.loosened.isdisjoint(rule.paths):
                raise error
        if not chosen and (self.grammar.parameters or not self.grammar.include):
            raise self.grammar.root.error("every condition is excluded: nothing is left to run", "exclude")
        return tuple(used)

    def _matches_unbuilt(self, rule: Rule) -> bool:
        """Whether a rule about a default would match what other rules excluded before it was built."""
        for assignment in self.unbuilt:
            with contextlib.suppress(ConditionError):
                if rule.matches(self.flats(self.builder(assignment))):
                    return True
        return False

    def _chosen(self, conditions: list[Condition], *, may_be_empty: bool) -> list[Condition]:
        """What `only` leaves: what a baseline does not have cannot exclude it, so the twins of what is left stay."""
        kept = list(filter(self.wanted, conditions)) if may_be_empty else self._filter(conditions)
        left = {condition.condition_id for condition in kept}
        left |= {condition.baseline().condition_id for condition in kept} if self.grammar.baselines else set()
        return [condition for condition in conditions if condition.condition_id in left]

    def _filter(self, conditions: list[Condition]) -> list[Condition]:
        for rule in self.grammar.only:
            kept = [condition for condition in conditions if rule.matches(self.flats(condition))]
            if not kept:
                raise no_match(rule, conditions, "only", "leaves nothing")
            conditions = kept
        return conditions


def twins_of(conditions: Iterable[Condition]) -> list[Condition]:
    """The unpoisoned twins that are missing: by their ids, under which readers look for them. A condition at rate 0
    that says how it would poison is no twin, though it shares its like's poison stage."""
    present: set[str] = set()
    twins: dict[str, Condition] = {}
    known: dict[tuple[Any, ...], Condition] = {}
    for condition in conditions:
        kept = (id(getattr(condition, name)) for name in SECTIONS if name not in ("trigger", "poison"))
        key = (*kept, condition.seed)
        twin = known.get(key) or known.setdefault(key, condition.baseline())
        twins.setdefault(twin.condition_id, twin)
        if condition.is_baseline:
            present.add(condition.condition_id)
    return [twin for name, twin in twins.items() if name not in present]


def pairwise_subset(
    conditions: Sequence[Condition],
    flats: Callable[[Condition], Mapping[str, Any]] | None = None,
    kept: Collection[str] = (),
) -> list[Condition]:
    """A few of the conditions in which every two values that meet in one of them still meet, in their order.

    Args:
        conditions: any conditions; the seed is one axis of them.
        flats: the values of a condition that count, by dotted path; None: all.
        kept: ids of conditions that are chosen in any case.
    """
    flats = flats or Flats()
    rows = [{path: freeze(value) for path, value in flats(condition).items()} for condition in conditions]
    start = [index for index, condition in enumerate(conditions) if condition.condition_id in kept] if kept else []
    return [conditions[index] for index in covering_subset(rows, start)]
