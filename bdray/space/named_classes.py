"""Classes in assignments that are no conditions yet: compared by what they mean, not by how they are written."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from itertools import product
from typing import Any

from bdray.data.base import DATASETS, DataSet
from bdray.errors import BdrayError, ComponentError
from bdray.poisoning.base import STRATEGIES
from bdray.poisoning.classes import NamedClass, class_options, index_of
from bdray.searches.domain import Flat
from bdray.space.axes import Rule, values_of
from bdray.space.building import Builder, nest
from bdray.space.grammar import Grammar


class NamedClasses:
    """Lets an index and the name of a class be compared in assignments, before there is a condition that resolves them.

    Does nothing for a space that names no class. A name means what it means in the data set of the assignment, so
    a class is read after `NEEDS` are known.
    """

    NEEDS = frozenset({"data.name", "data.root", "poison.strategy"})

    def __init__(self, grammar: Grammar, builder: Builder) -> None:
        self._grammar, self._builder = grammar, builder
        self._data: dict[str, DataSet | None] = {}
        rules = (*grammar.exclude, *(axis.when for axis in grammar.parameters.values() if axis.when))
        written = {
            path: [value for rule in rules if path in rule.paths for value in values_of(rule.entries[path].plain())]
            for path in {f"poison.{option}" for name in STRATEGIES.names() for option in class_options(name)}
        }
        self._paths = frozenset(
            path
            for path, values in written.items()
            if any(isinstance(value, str) for value in (*values, *grammar.possible(path)[0]))
        )

    def needed_by(self, paths: Collection[str]) -> frozenset[str]:
        """What has to be known beside them where values of these paths are compared."""
        return frozenset() if self._paths.isdisjoint(paths) else self.NEEDS

    def match(self, rule: Rule, assignment: Flat) -> bool | None:
        """`rule.matches`, whichever of index and name either of the two says."""
        return rule.matches(self._known(assignment, rule.paths))

    def meant(self, path: str, values: list[Any]) -> list[Any]:
        """The values that `path` may take; classes with index and name, in each data set that there may be."""
        if path not in self._paths:
            return values
        needs = {need: self._grammar.possible(need)[0] for need in sorted(self.NEEDS)}
        needs = {need: found for need, found in needs.items() if found}
        places = [dict(zip(needs, place, strict=True)) for place in product(*needs.values())]
        return [self._known({**place, path: value}, [path])[path] for place in places for value in values]

    def _known(self, assignment: Flat, asked: Collection[str]) -> Flat:
        """The assignment, with index and name of classes at the `asked` paths, as far as their data set is known."""
        options = {f"poison.{option}" for option in class_options(assignment.get("poison.strategy", "all_to_one"))}
        paths = [
            path
            for path in self._paths & options & set(asked) & assignment.keys()
            if not isinstance(assignment[path], NamedClass)
        ]
        data = self._data_of(assignment) if paths else None
        if data is None or not (names := data.class_names()):
            return assignment
        found: Flat = {}
        for path in paths:
            index = assignment[path]
            # What is no class is said when the condition is built.
            with suppress(ComponentError):
                index = index_of(index, names, data.name) if isinstance(index, str) else index
            if isinstance(index, int) and 0 <= index < len(names):
                found[path] = NamedClass(index, names[index])
        return {**assignment, **found}

    def _data_of(self, assignment: Flat) -> DataSet | None:
        """The data set of an assignment, if it can be told."""
        rooted = self._builder.with_root(assignment)
        options = {path: value for path, value in rooted.items() if path.partition(".")[0] == "data"}
        if repr(options) not in self._data:
            try:
                self._data[repr(options)] = DATASETS.build(nest(options)["data"])
            except (BdrayError, KeyError):
                # Said when the condition is built.
                self._data[repr(options)] = None
        return self._data[repr(options)]
