"""From the grammar of a search space to its conditions: crossing, `when`, `zip`, `exclude`, `include`, baselines.

    units (parameters and zip groups, each after those its `when` asks about)
      -> assignments (flat paths)  -> exclude  -> conditions  + include  + baselines  -> only

Everything is deterministic: axes vary in the order of the file, the last one fastest, seeds slowest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from bdray.condition import COMPONENTS, Condition, flatten
from bdray.errors import ComponentError, ConditionError, SpaceError, nearest
from bdray.seeds import derive_seed
from bdray.space.grammar import MISSING, NAME_KEYS, Flat, Parameter, Rule, freeze, lookup, show_plain, spread
from bdray.space.pairwise import covering_subset
from bdray.space.source import Located, Where

if TYPE_CHECKING:
    from bdray.space.grammar import Search

MAX_CONDITIONS = 200_000
"""More than anybody runs; stops a grid that would fill the memory."""

_PATIENCE = 1_000
"""How often in a row a random draw may bring nothing new before the space counts as drawn empty."""

_SECTIONS = tuple(name for name in Condition.model_fields if name != "seed")


@dataclass(frozen=True)
class Grammar:
    """The checked pieces of a search space that say which conditions there are.

    Attributes:
        loosened: paths that the command line replaced: rules about them may match nothing.
        root: the document, for complaints about the whole.
    """

    seeds: tuple[int, ...]
    fixed: Mapping[str, Located]
    parameters: Mapping[str, Parameter]
    zip: tuple[tuple[str, ...], ...]
    exclude: tuple[Rule, ...]
    include: tuple[Mapping[str, Located], ...]
    baselines: bool
    search: Search
    only: tuple[Rule, ...]
    loosened: frozenset[str]
    root: Located


@dataclass(frozen=True)
class Expansion:
    """The conditions of a search space, and how they came about.

    Attributes:
        conditions: unique by `condition_id`.
        excluded: how many assignments each `exclude` rule matched.
        duplicates: how many assignments meant a condition that was there already.
        twins: ids of the unpoisoned twins that were added.
        unfiltered: the conditions before `only`.
        parameters, zip, exclude: what is left of the grammar without what only spoke of replaced paths.
    """

    conditions: tuple[Condition, ...]
    excluded: tuple[int, ...]
    duplicates: int
    twins: frozenset[str]
    unfiltered: tuple[Condition, ...]
    parameters: Mapping[str, Parameter]
    zip: tuple[tuple[str, ...], ...]
    exclude: tuple[Rule, ...]


class Flats:
    """Resolved flat content of conditions, made once for every section object (conditions share those)."""

    def __init__(self) -> None:
        self._cache: dict[int, tuple[Any, Flat]] = {}

    def __call__(self, condition: Condition) -> Flat:
        flat: Flat = {}
        for name in _SECTIONS:
            flat.update(self.section(name, getattr(condition, name)))
        flat["seed"] = condition.seed
        return flat

    def section(self, name: str, section: Any) -> Flat:
        if section is None:
            return {name: None}
        cached = self._cache.get(id(section))
        if cached is None:
            # The section is kept beside its content, so that its id cannot be given to another object.
            cached = section, flatten(section.model_dump(mode="json"), f"{name}.")
            self._cache[id(section)] = cached
        return cached[1]


class Builder:
    """Conditions from flat assignments; equal sections are validated once and shared."""

    def __init__(self) -> None:
        self._sections: dict[tuple[str, tuple[Any, ...]], Any] = {}
        self._checked: set[tuple[int, ...]] = set()

    def build(self, assignment: Flat) -> Condition:
        """The validated condition.

        Raises:
            ConditionError: with the dotted path and the nearest valid name.
        """
        keys = self._keys(assignment)
        sections: dict[str, Any] = {name: self._sections.get((name, keys.get(name, ()))) for name in _SECTIONS}
        if any(section is None for section in sections.values()):
            return self._parse(assignment, keys)
        fields = {**sections, "trigger": sections["trigger"][0], "seed": assignment["seed"]}
        condition = Condition.model_construct(**fields)
        self._check(condition)
        return condition

    def _parse(self, assignment: Flat, keys: Mapping[str, tuple[Any, ...]]) -> Condition:
        condition = Condition.parse(nest(assignment))
        for name in _SECTIONS:
            section = getattr(condition, name)
            self._sections.setdefault((name, keys.get(name, ())), (section,) if name == "trigger" else section)
        return condition

    def _check(self, condition: Condition) -> None:
        key = tuple(id(getattr(condition, name)) for name in COMPONENTS)
        if key not in self._checked:
            condition.check()
            self._checked.add(key)

    @staticmethod
    def _keys(assignment: Flat) -> dict[str, tuple[Any, ...]]:
        keys: dict[str, tuple[Any, ...]] = {}
        for path, value in assignment.items():
            head = path.partition(".")[0]
            keys[head] = (*keys.get(head, ()), path, repr(value))
        return keys


class Unit:
    """Parameters that advance together: one, or a zip group."""

    def __init__(self, members: Sequence[Parameter]) -> None:
        self.members = in_order(list(members), _Axis.of) if len(members) > 1 else list(members)
        self.paths = frozenset(path for member in members for path in member.paths)
        self.needs = frozenset(path for member in members if member.when for path in member.when.paths)
        self._plain = len(members) == 1 and members[0].when is None

    @property
    def size(self) -> int:
        """How many values it has; 0 for a distribution."""
        return len(self.members[0].values)

    def rows(self, assignment: Flat) -> list[Flat]:
        """What it adds to a condition so far, without repeats; one empty row where it is absent."""
        if self._plain:
            return list(self.members[0].rows)
        rows: dict[Any, Flat] = {}
        for index in range(self.size):
            row = self.row(assignment, index)
            rows.setdefault(freeze(row), row)
        return list(rows.values())

    def row(self, assignment: Flat, index: int) -> Flat:
        """What its value number `index` adds to a condition so far."""
        row: Flat = {}
        for member in self.members:
            if member.when is None or member.when.matches({**assignment, **row}):
                row.update(member.rows[index])
        return row

    def drawn(self, assignment: Flat, quantile: float) -> Flat:
        """What it adds at `quantile`, in [0, 1)."""
        first = self.members[0]
        if first.distribution is None:
            return self.row(assignment, int(quantile * self.size))
        if first.when is None or first.when.matches(assignment):
            return {first.path: first.distribution.draw(quantile)}
        return {}


class _Axis(NamedTuple):
    """What ordering asks of a parameter or a unit."""

    sets: frozenset[str]
    asks: frozenset[str]
    members: tuple[Parameter, ...]

    @staticmethod
    def of(item: Parameter | Unit) -> _Axis:
        if isinstance(item, Unit):
            return _Axis(
                item.paths, item.needs - (item.paths if len(item.members) > 1 else frozenset()), tuple(item.members)
            )
        return _Axis(item.paths, frozenset(item.when.paths if item.when else ()), (item,))


T = TypeVar("T", Parameter, Unit)


def in_order(items: list[T], axis: Callable[[T], _Axis]) -> list[T]:
    """Each item after those that set what its `when` asks about; otherwise the order stays.

    Raises:
        SpaceError: a cycle; names the parameters.
    """
    waiting, ordered = list(items), []
    while waiting:
        unset = [axis(item).sets for item in waiting]
        ready = next((item for item in waiting if not any(_touches(axis(item).asks, sets) for sets in unset)), None)
        if ready is None:
            members = [member for item in waiting for member in axis(item).members if member.when]
            names = ", ".join(member.path for member in members)
            raise members[0].error(f"the `when` of these parameters ask about each other in a circle: {names}")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _touches(asks: Iterable[str], sets: frozenset[str]) -> bool:
    # Asking about `trigger.name` also asks about a `trigger` that may be null.
    return any(ask == path or ask.startswith(f"{path}.") for ask in asks for path in sets)


def nest(assignment: Flat) -> dict[str, Any]:
    """Nested content from dotted paths.

    Raises:
        ConditionError: a path is both a value and a section.
    """
    content: dict[str, Any] = {}
    for path, value in assignment.items():
        *parents, last = path.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConditionError(path, f"cannot be set: '{parent}' is {show_plain(place)}, not a section")
        if last in place:
            raise ConditionError(path, "is given both as a value and as a section")
        place[last] = value
    return content


def merge(base: Flat, over: Flat) -> Flat:
    """`base` with the values of `over`, which also take the place of what lies above and below them."""
    kept = {
        path: value
        for path, value in base.items()
        if not any(path.startswith(f"{new}.") or new.startswith(f"{path}.") for new in over)
    }
    return {**kept, **over}


def expand(grammar: Grammar) -> Expansion:
    """The conditions of a search space.

    Raises:
        SpaceError: whatever is wrong with the grammar or a condition; points to the line.
    """
    return _Expander(grammar).run()


class _Expander:
    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.parameters = dict(grammar.parameters)
        self.zip = grammar.zip
        self.fixed: Flat = {}
        for path, node in grammar.fixed.items():
            self.fixed.update(spread(path, node.plain()))
        self.build, self.flats = Builder().build, Flats()
        self.excluded = [0] * len(grammar.exclude)
        self.unbuilt: list[Flat] = []
        self.duplicates = 0

    def run(self) -> Expansion:
        self._check_conflicts()
        self._check_when()
        chosen = self._choose()
        exclude = self._check_exclude(chosen)
        conditions = self._unique([*chosen, *self._included()])
        twins = self._twins(conditions) if self.grammar.baselines else []
        rank = {seed: index for index, seed in enumerate(self.grammar.seeds)}
        conditions = sorted([*conditions, *twins], key=lambda c: rank.get(c.seed, len(rank)))
        kept = self._filter(conditions)
        return Expansion(
            conditions=tuple(kept),
            excluded=tuple(self.excluded[self.grammar.exclude.index(rule)] for rule in exclude),
            duplicates=self.duplicates,
            twins=frozenset(twin.condition_id for twin in twins),
            unfiltered=tuple(conditions),
            parameters=self.parameters,
            zip=self.zip,
            exclude=exclude,
        )

    # What can be said before anything is crossed.

    def _check_conflicts(self) -> None:
        taken = {path: node.key for path, node in self.grammar.fixed.items()}
        owners: dict[str, str] = dict.fromkeys(taken, "")
        for parameter in self.parameters.values():
            for path in parameter.paths:
                for other, where in taken.items():
                    same = (
                        path == other and (owners[other] or parameter.when is None) and owners[other] != parameter.path
                    )
                    crossed = path.startswith(f"{other}.") or other.startswith(f"{path}.")
                    if same or (crossed and owners[other] != parameter.path):
                        line = f" on line {where.line}" if where.line else ""
                        role = "a parameter" if owners[other] else "fixed"
                        raise parameter.error(f"'{other}' is {role}{line} already: give it in one of the two places")
            for path in parameter.paths:
                taken.setdefault(path, parameter.key)
                owners[path] = owners.get(path) or parameter.path

    def _check_when(self) -> None:
        """Every `when` must be possible; those that only the command line made impossible go."""
        loosened = set(self.grammar.loosened)
        while True:
            dead = next((p for p in self.parameters.values() if self._impossible(p, loosened)), None)
            if dead is None:
                return
            self._drop(dead.path)
            loosened |= {dead.path, *dead.paths}

    def _impossible(self, parameter: Parameter, loosened: set[str]) -> bool:
        if parameter.when is None:
            return False
        for path, entry in parameter.when.entries.items():
            values, open_ended = self._possible(path)
            if open_ended or any(parameter.when.wants(path, value) for value in values):
                continue
            if path in loosened:
                return True
            owner = f"{parameter.path}.when"
            if not values:
                known = {"seed", *self.fixed, *(p for other in self.parameters.values() for p in other.paths)}
                problem = f"nothing sets '{path}'; {nearest(path, known)}"
                raise entry.error(problem, f"{owner}.{path}", at_key=True)
            listed = nearest(show_plain(entry.plain()), map(show_plain, values))
            raise entry.error(
                f"can never be met: '{path}' is never {show_plain(entry.plain())}; {listed}", f"{owner}.{path}"
            )
        return False

    def _possible(self, path: str) -> tuple[list[Any], bool]:
        """The values a path may take, and whether a distribution may give others."""
        values: list[Any] = list(self.grammar.seeds) if path == "seed" else []
        value = lookup(self.fixed, path)
        values += [] if value is MISSING else [value]
        drawn = False
        for parameter in self.parameters.values():
            drawn |= parameter.distribution is not None and parameter.path == path
            found = (lookup(row, path) for row in parameter.rows)
            values += [value for value in found if value is not MISSING]
        return values, drawn

    def _drop(self, path: str) -> None:
        del self.parameters[path]
        groups = (tuple(member for member in group if member != path) for group in self.zip)
        self.zip = tuple(group for group in groups if len(group) > 1)

    def _units(self) -> list[Unit]:
        grouped = {path: group for group in self.zip for path in group}
        units: dict[tuple[str, ...], Unit] = {}
        for path in self.parameters:
            group = grouped.get(path, (path,))
            if group not in units:
                units[group] = Unit([self.parameters[member] for member in group])
        return in_order(list(units.values()), _Axis.of)

    # Which cells there are.

    def _choose(self) -> list[Condition]:
        units = self._units()
        method = self.grammar.search.method
        if method == "random":
            return list(self._draw(units))
        for parameter in self.parameters.values():
            if parameter.distribution is not None:
                raise parameter.error(f"min and max need `search.method: random`; the method is {method}")
        if not self.parameters and self.grammar.include:
            return []
        grid = [a for a in self._grid(units) if not self._excluded_raw(a)]
        conditions = self._unique(self._built(grid))
        return self._pairwise(conditions) if method == "pairwise" else conditions

    def _grid(self, units: Sequence[Unit]) -> list[Flat]:
        """Every assignment of the grid, before `exclude`."""
        assignments = [{"seed": seed, **self.fixed} for seed in self.grammar.seeds]
        for unit in units:
            grown: list[Flat] = []
            for assignment in assignments:
                rows = unit.rows(assignment)
                grown += [{**assignment, **row} for row in rows]
                if len(grown) > MAX_CONDITIONS:
                    raise self.grammar.root.error(f"the grid has more than {MAX_CONDITIONS:,} conditions", "parameters")
            assignments = grown
        self._check_met(assignments)
        return assignments

    def _check_met(self, assignments: Sequence[Flat]) -> None:
        """Entries of a `when` may be possible one by one and yet never together."""
        for parameter in list(self.parameters.values()):
            if parameter.when is None or any(parameter.when.matches(a) for a in assignments):
                continue
            if not self.grammar.loosened.isdisjoint(parameter.when.paths):
                self._drop(parameter.path)
                continue
            where = parameter.when.where
            problem = f"can never be met: no condition has {parameter.when}"
            raise SpaceError(problem, file=where.file, line=where.line, path=f"{parameter.path}.when")

    def _draw(self, units: Sequence[Unit]) -> Iterator[Condition]:
        """Distinct conditions drawn at random: cell by cell, each with every seed."""
        wanted = self.grammar.search.max_trials or 0
        random = np.random.default_rng(derive_seed(self.grammar.search.seed, "subset", "search"))
        seen: set[str] = set()
        tried: set[Any] = set()

        def new(assignments: Iterable[Flat]) -> Iterator[Condition]:
            for assignment in assignments:
                key = freeze(assignment)
                if key in tried:
                    continue
                tried.add(key)
                if self._excluded_raw(assignment):
                    continue
                for condition in self._built([assignment]):
                    if condition.condition_id not in seen and len(seen) < wanted:
                        seen.add(condition.condition_id)
                        yield condition

        misses = 0
        while len(seen) < wanted and misses < _PATIENCE:
            quantiles = random.random(len(units)).tolist()
            before = len(seen)
            yield from new(self._drawn(units, quantiles, seed) for seed in self.grammar.seeds)
            misses = 0 if len(seen) > before else misses + 1
        if len(seen) < wanted and all(parameter.distribution is None for parameter in self.parameters.values()):
            # What is left of a nearly exhausted finite grid would take too many draws to find.
            grid = self._grid(units)
            yield from new(grid[index] for index in random.permutation(len(grid)))

    def _drawn(self, units: Sequence[Unit], quantiles: Sequence[float], seed: int) -> Flat:
        assignment: Flat = {"seed": seed, **self.fixed}
        for unit, quantile in zip(units, quantiles, strict=True):
            assignment.update(unit.drawn(assignment, quantile))
        return assignment

    def _pairwise(self, conditions: list[Condition]) -> list[Condition]:
        """Cells that cover all pairs, with every seed they have."""
        cells = list({condition.cell_id: condition for condition in reversed(conditions)}.values())[::-1]
        chosen = {condition.cell_id for condition in pairwise_subset(cells, self.flats)}
        kept = {condition.condition_id for condition in conditions if condition.cell_id in chosen}
        # Where seeds differ in their cells, pairs with a seed may still be missing.
        kept |= {condition.condition_id for condition in pairwise_subset(conditions, self.flats, kept)}
        return [condition for condition in conditions if condition.condition_id in kept]

    # From assignments to conditions.

    def _excluded(self, flat: Flat) -> bool:
        """Whether some rule matches; counts every rule that does."""
        matching = [index for index, rule in enumerate(self.grammar.exclude) if rule.matches(flat)]
        for index in matching:
            self.excluded[index] += 1
        return bool(matching)

    def _excluded_raw(self, assignment: Flat) -> bool:
        # Before building, so that combinations which cannot be built can be excluded.
        if not self._excluded(assignment):
            return False
        self.unbuilt.append(assignment)
        return True

    def _built(self, assignments: Iterable[Flat]) -> Iterator[Condition]:
        undecided = bool(self.grammar.exclude)
        for assignment in assignments:
            try:
                condition = self.build(assignment)
            except ConditionError as error:
                raise self._located(error, assignment, self.grammar.fixed) from None
            if not (undecided and self._excluded(self.flats(condition))):
                yield condition

    def _unique(self, conditions: Iterable[Condition]) -> list[Condition]:
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
            for seed in self.grammar.seeds:
                assignment = merge({"seed": seed, **self.fixed}, added)
                try:
                    yield self.build(assignment)
                except ConditionError as error:
                    raise self._located(error, assignment, {**self.grammar.fixed, **cell}) from None

    def _twins(self, conditions: Iterable[Condition]) -> list[Condition]:
        """The unpoisoned twins that are missing. A condition at rate 0 counts as the twin of its like."""
        present: set[str] = set()
        twins: dict[str, Condition] = {}
        known: dict[tuple[Any, ...], Condition] = {}
        for condition in conditions:
            kept = (id(getattr(condition, name)) for name in _SECTIONS if name not in ("trigger", "poison"))
            key = (*kept, condition.seed)
            twin = known.get(key) or known.setdefault(key, condition.baseline())
            twins.setdefault(twin.condition_id, twin)
            if condition.is_baseline:
                present.add(twin.condition_id)
        return [twin for name, twin in twins.items() if name not in present]

    # What must have mattered.

    def _check_exclude(self, chosen: Sequence[Condition]) -> tuple[Rule, ...]:
        used = []
        for rule, count in zip(self.grammar.exclude, self.excluded, strict=True):
            drawn = self.grammar.search.method == "random" and self._all_known(rule, chosen)
            if count or drawn or self._matches_unbuilt(rule):
                used.append(rule)
            elif self.grammar.loosened.isdisjoint(rule.paths):
                raise no_match(rule, chosen, "exclude", "matches no condition")
        if not chosen and (self.parameters or not self.grammar.include):
            raise self.grammar.root.error("every condition is excluded: nothing is left to run", "exclude")
        return tuple(used)

    def _matches_unbuilt(self, rule: Rule) -> bool:
        """Whether a rule about a default would match what other rules excluded before it was built."""
        for assignment in self.unbuilt:
            with contextlib.suppress(ConditionError):
                if rule.matches(self.flats(self.build(assignment))):
                    return True
        return False

    def _all_known(self, rule: Rule, conditions: Sequence[Condition]) -> bool:
        known = values_by_path(conditions)
        return all(path in known for path in rule.paths)

    def _filter(self, conditions: list[Condition]) -> list[Condition]:
        for rule in self.grammar.only:
            kept = [condition for condition in conditions if rule.matches(self.flats(condition))]
            if not kept:
                raise no_match(rule, conditions, "only", "leaves nothing")
            conditions = kept
        return conditions

    # Where a wrong value stands.

    def _located(self, error: ConditionError, assignment: Flat, given: Mapping[str, Located]) -> SpaceError:
        where = self._where(error.path, assignment, given)
        problem = error.problem + self._hint(error.path, assignment)
        return SpaceError(problem, file=where.file, line=where.line, path=error.path)

    def _where(self, path: str, assignment: Flat, given: Mapping[str, Located]) -> Where:
        """The place of the value at `path`, of what it lies in, or of what names its section."""
        root = self.grammar.root.where
        candidates = [".".join(path.split(".")[:length]) for length in range(path.count(".") + 1, 0, -1)]
        head = candidates[-1]
        candidates += [f"{head}.{NAME_KEYS[head]}"] if head in NAME_KEYS else []
        candidates += [given_path for given_path in given if given_path.startswith(f"{head}.")]
        for candidate in candidates:
            node = self._node(candidate, assignment, given)
            if node is not None:
                return _descend(node, path.removeprefix(candidate).strip(".")).where
        return root

    def _node(self, path: str, assignment: Flat, given: Mapping[str, Located]) -> Located | None:
        for parameter in self.parameters.values():
            for row, value in zip(parameter.rows, parameter.values, strict=True):
                if path in row and path in assignment and freeze(row[path]) == freeze(assignment[path]):
                    return _descend(value, path.removeprefix(parameter.path).strip("."))
            if parameter.path == path and parameter.distribution is not None:
                return Located(None, parameter.key, parameter.key)
        return given.get(path)

    def _hint(self, path: str, assignment: Flat) -> str:
        """How an option that only some components have is written."""
        head, _, option = path.partition(".")
        given = any(path in place for place in (self.parameters, self.grammar.fixed))
        if head not in NAME_KEYS or not given or option == NAME_KEYS[head]:
            return ""
        named = f"{head}.{NAME_KEYS[head]}"
        names = [value for value in self._possible(named)[0] if isinstance(value, str)]
        taking = [name for name in dict.fromkeys(names) if option.split(".")[0] in options_of(head, name)]
        if not taking or assignment.get(named) in taking:
            return ""
        place = "; move it to `parameters`" if path in self.grammar.fixed else ""
        values = show_plain(taking if len(taking) > 1 else taking[0])
        return f"{place}; to give it only where it exists, add `when: {{{named}: {values}}}`"


def values_by_path(conditions: Iterable[Condition]) -> dict[str, dict[Any, Any]]:
    """Every value that every path takes, by its frozen form."""
    flats = Flats()
    sections: dict[tuple[str, int], Any] = {}
    values: dict[str, dict[Any, Any]] = {"seed": {}}
    for condition in conditions:
        values["seed"][condition.seed] = condition.seed
        for name in _SECTIONS:
            section = getattr(condition, name)
            sections[name, id(section)] = section
    for (name, _), section in sections.items():
        for path, value in flats.section(name, section).items():
            values.setdefault(path, {}).setdefault(freeze(value), value)
    return values


def no_match(rule: Rule, conditions: Iterable[Condition], owner: str, problem: str) -> SpaceError:
    """Why `rule` matches none of the conditions: an unknown path, a value that is never taken, or the combination."""
    known = values_by_path(conditions)
    for path, entry in rule.entries.items():
        if path not in known:
            return entry.error(f"no condition has '{path}'; {nearest(path, known)}", f"{owner}.{path}", at_key=True)
        if not any(rule.wants(path, value) for value in known[path].values()):
            shown = show_plain(entry.plain())
            hint = nearest(shown, map(show_plain, known[path].values()))
            return entry.error(f"{problem}: '{path}' is never {shown}; {hint}", f"{owner}.{path}")
    where = rule.where
    return SpaceError(f"{problem}: {rule} never holds together", file=where.file, line=where.line, path=owner)


def options_of(section: str, name: str) -> frozenset[str]:
    """The options of the component `name`; none where there is no such component."""
    try:
        return frozenset(COMPONENTS[section].get(name).model_fields)
    except ComponentError:
        return frozenset()


def _descend(node: Located, path: str) -> Located:
    for part in path.split(".") if path else ():
        content = node.content
        if isinstance(content, dict) and part in content:
            node = content[part]
        elif isinstance(content, list) and part.isdigit() and int(part) < len(content):
            node = content[int(part)]
        else:
            break
    return node


def pairwise_subset(
    conditions: Sequence[Condition], flats: Flats | None = None, kept: Collection[str] = ()
) -> list[Condition]:
    """A few of the conditions in which every two values that meet in one of them still meet, in their order.

    Args:
        conditions: any conditions; the seed is one axis of them.
        flats: flat contents that are known already.
        kept: ids of conditions that are chosen in any case.
    """
    flats = flats or Flats()
    rows = [{path: freeze(value) for path, value in flats(condition).items()} for condition in conditions]
    start = [index for index, condition in enumerate(conditions) if condition.condition_id in kept] if kept else []
    return [conditions[index] for index in covering_subset(rows, start)]
