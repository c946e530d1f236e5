"""Conditions from flat assignments, quickly; and the line of the file where a wrong one comes from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bdray.condition import COMPONENTS, TEST_TRIGGER, Condition, flatten
from bdray.data.base import DataSet
from bdray.data.roots import root_of
from bdray.errors import ComponentError, ConditionError, SpaceError, nearest
from bdray.poisoning.classes import classes_in, is_meant
from bdray.searches.domain import Flat
from bdray.space.axes import Rule, crossed, deepest
from bdray.space.grammar import Grammar
from bdray.space.source import Located
from bdray.space.written import NAME_KEYS, found_beside
from bdray.values import freeze, show

_TESTED = f"poison.{TEST_TRIGGER}"

SECTIONS = tuple(name for name in Condition.model_fields if name != "seed")


class Flats:
    """Resolved flat content of conditions, made once for every section object (conditions share those). Classes know
    their names in it, where the data set knows them."""

    def __init__(self) -> None:
        self._cache: dict[int, tuple[Any, Flat]] = {}
        self._classes: dict[int, tuple[DataSet, Sequence[str] | None]] = {}

    def __call__(self, condition: Condition) -> Flat:
        flat: Flat = {}
        for name in SECTIONS:
            flat.update(self.section(name, getattr(condition, name)))
        flat["seed"] = condition.seed
        flat.update(classes_in(flat, self._class_names(condition.data)))
        return flat

    def _class_names(self, data: DataSet) -> Sequence[str] | None:
        if id(data) not in self._classes:
            self._classes[id(data)] = data, data.class_names()
        return self._classes[id(data)][1]

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
    """Conditions from flat assignments; equal sections are validated once and shared.

    Args:
        roots: folders of data sets, by their names.
        beside: the folder where a trigger's picture may lie that is not found from where the command was typed.
    """

    def __init__(self, roots: Mapping[str, str], beside: Path | None = None) -> None:
        self._roots, self._beside = roots, beside
        self._sections: dict[tuple[str, tuple[Any, ...]], Any] = {}
        self._checked: set[tuple[object, ...]] = set()

    def __call__(self, assignment: Flat) -> Condition:
        """The validated condition.

        Raises:
            ConditionError: with the dotted path and the nearest valid name.
        """
        assignment = self._with_pictures(self.with_root(assignment))
        given: dict[str, tuple[Any, ...]] = dict.fromkeys(SECTIONS, ())
        for path, value in assignment.items():
            head = path.partition(".")[0]
            given[head] = (*given.get(head, ()), path, repr(value))
        # What a class that is named in it stands for depends on the data, what a test trigger is on the trigger.
        given["poison"] += given["data"]
        if any(path.startswith(_TESTED) for path in given["poison"][::2]):
            given["poison"] += given["trigger"]
        keys = {name: (name, given[name]) for name in SECTIONS}
        if not self._sections.keys() >= set(keys.values()):
            parsed = Condition.parse(nest(assignment))
            for name, key in keys.items():
                self._sections.setdefault(key, getattr(parsed, name))
        fields = {name: self._sections[key] for name, key in keys.items()}
        condition = Condition.model_construct(**fields, seed=assignment["seed"])
        if (checked := condition.checked_by) not in self._checked:
            condition.check()
            self._checked.add(checked)
        return condition

    def with_root(self, assignment: Flat) -> Flat:
        """With the folder of its data set, where that is set for each data set."""
        name, own = assignment.get("data.name", assignment.get("data")), assignment.get("data.root")
        root = root_of(name, self._roots, own) if isinstance(name, str) else own
        if root == own:
            return assignment
        return {
            **{path: value for path, value in assignment.items() if path != "data"},
            "data.name": name,
            "data.root": root,
        }

    def _with_pictures(self, assignment: Flat) -> Flat:
        return {path: found_beside(value, path, self._beside) for path, value in assignment.items()}


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
                raise ConditionError(path, f"cannot be set: '{parent}' is {show(place)}, not a section")
        if last in place:
            raise ConditionError(path, "is given both as a value and as a section")
        place[last] = value
    return content


def merge(base: Flat, over: Flat) -> Flat:
    """`base` with the values of `over`, which also take the place of what lies above and below them."""
    return {**{path: value for path, value in base.items() if not any(crossed(path, new) for new in over)}, **over}


def located(error: ConditionError, assignment: Flat, grammar: Grammar, cell: Mapping[str, Located]) -> SpaceError:
    """What is wrong with an assignment, told at the place of the value, of what it lies in, or of what names its
    section.

    Args:
        cell: what an included cell gives by itself.
    """
    given = {**grammar.fixed, **cell}
    parts = error.path.split(".")
    candidates = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    head = parts[0]
    candidates += [f"{head}.{NAME_KEYS[head]}"] if head in NAME_KEYS else []
    candidates += [path for path in given if path.startswith(f"{head}.")]
    nodes = ((path, _node(path, assignment, grammar) or given.get(path)) for path in candidates)
    found = ((path, node) for path, node in nodes if node is not None)
    path, node = next(found, (error.path, grammar.root))
    where = _descend(node, error.path.removeprefix(path)).where
    problem = error.problem + _hint(error.path, assignment, grammar)
    return SpaceError(problem, file=where.file, line=where.line, path=error.path)


@contextmanager
def placing(grammar: Grammar) -> Iterator[None]:
    """Complaints of a search method, which knows key paths alone, say where in the file that is."""
    try:
        yield
    except SpaceError as error:
        if error.file:
            raise
        axis = grammar.parameters.get(error.path)
        where = axis.key if axis else deepest(grammar.root, error.path).where
        raise SpaceError(error.problem, file=where.file, line=where.line, path=error.path) from None


def _node(path: str, assignment: Flat, grammar: Grammar) -> Located | None:
    """Where a parameter gave this path its value."""
    for parameter in grammar.parameters.values():
        for row, value in zip(parameter.rows, parameter.values, strict=True):
            if path in row and path in assignment and is_meant(row[path], assignment[path]):
                return _descend(value, path.removeprefix(parameter.path))
        if parameter.path == path and parameter.distribution is not None:
            return Located(None, parameter.key, parameter.key)
    return None


def _descend(node: Located, path: str) -> Located:
    for part in filter(None, path.split(".")):
        content = node.content
        if isinstance(content, dict) and part in content:
            node = content[part]
        elif isinstance(content, list) and part.isdigit() and int(part) < len(content):
            node = content[int(part)]
        else:
            break
    return node


def _hint(path: str, assignment: Flat, grammar: Grammar) -> str:
    """How an option that only some components have is written."""
    head, _, option = path.partition(".")
    given = path in grammar.parameters or path in grammar.fixed
    if head not in NAME_KEYS or not given or option == NAME_KEYS[head]:
        return ""
    named = f"{head}.{NAME_KEYS[head]}"
    names = dict.fromkeys(value for value in grammar.possible(named)[0] if isinstance(value, str))
    taking = [name for name in names if option.split(".")[0] in options_of(head, name)]
    if not taking or assignment.get(named) in taking:
        return ""
    place = "; move it to `parameters`" if path in grammar.fixed else ""
    values = show(taking if len(taking) > 1 else taking[0])
    return f"{place}; to give it only where it exists, add `when: {{{named}: {values}}}`"


def options_of(section: str, name: str) -> frozenset[str]:
    """What a component of this name takes; nothing where there is none."""
    try:
        return frozenset(COMPONENTS[section].get(name).model_fields)
    except ComponentError:
        return frozenset()


def values_by_path(conditions: Iterable[Condition]) -> dict[str, dict[Any, Any]]:
    """Every value that every path takes, by its frozen form."""
    flats = Flats()
    sections: dict[tuple[str, int], Any] = {}
    values: dict[str, dict[Any, Any]] = {"seed": {}}
    for condition in conditions:
        values["seed"][condition.seed] = condition.seed
        for name in SECTIONS:
            section = getattr(condition, name)
            sections[name, id(section)] = section
    for (name, _), section in sections.items():
        for path, value in flats.section(name, section).items():
            values.setdefault(path, {}).setdefault(freeze(value), value)
    return values


def no_match(rule: Rule, conditions: Collection[Condition], owner: str, problem: str) -> SpaceError:
    """Why `rule` matches none of the conditions: an unknown path, a value that is never taken, or the combination."""
    known, flats = values_by_path(conditions), Flats()
    for path, entry in rule.entries.items():
        if any(rule.wants(path, flats(condition)) for condition in conditions):
            continue
        if path not in known:
            return entry.error(f"no condition has '{path}'; {nearest(path, known)}", f"{owner}.{path}", at_key=True)
        return entry.error(f"{problem}: {never(path, entry, known[path].values())}", f"{owner}.{path}")
    return rule.error(f"{problem}: {rule} never holds together", owner)


def never(path: str, entry: Located, values: Iterable[Any]) -> str:
    """What is wrong with an entry that asks for none of the `values` of its path."""
    shown, known = show(entry.plain()), [show(value) for value in values]
    parts = [part.strip() for part in shown.split(",")]
    is_list = len(parts) > 1 and set(parts) <= set(known)
    advice = f"several values are a list: [{', '.join(parts)}]" if is_list else nearest(shown, known)
    return f"'{path}' is never {shown}; {advice}"
