"""What a search that looks at results may ask for: known from the axes, and only where nothing sets a path from the
conditions that are drawn as examples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bdray.condition import Condition
from bdray.errors import SpaceError, nearest
from bdray.intensity import levels
from bdray.searches import Planned
from bdray.searches.domain import MISSING, Distribution, Flat, lookup
from bdray.space.axes import Rule, crossed, values_of
from bdray.space.building import Builder, Flats, never, options_of, values_by_path
from bdray.space.grammar import Grammar
from bdray.space.named_classes import NamedClasses
from bdray.space.written import NAME_KEYS, Written
from bdray.values import freeze, show


def unreachable(
    rule: Rule,
    grammar: Grammar,
    examples: Collection[Condition],
    owner: str,
    problem: str,
    *,
    crossed: Collection[Flat],
) -> SpaceError | None:
    """Why nothing that a search may ask for meets `rule`: an unknown path, a value that is never taken, or values that
    are never taken together. None where that cannot be shown.

    Args:
        crossed: what listed values come to together, without what is drawn; none where that is not known.
    """
    flats = Flats()
    shown = [flats(condition) for condition in examples]
    for path, entry in rule.entries.items():
        if any(rule.wants(path, flat) for flat in shown) or _is_open(path, grammar, shown):
            continue
        written, axis = values_of(entry.plain()), grammar.parameters.get(path)
        values = _listed(rule, path, grammar)
        drawn = axis.distribution if axis else None
        if any(_is_same(path, one, other, grammar) for one in written for other in values):
            continue
        if drawn and any(_is_same(path, one, other, grammar) for one in written for other in _near(drawn, one)):
            continue
        known = values_by_path(examples)
        if not values and drawn is None and path not in known:
            at = {*known, *grammar.varied, *grammar.fixed}
            return entry.error(f"no condition has '{path}'; {nearest(path, at)}", f"{owner}.{path}", at_key=True)
        taken = {**known.get(path, {}), **{freeze(value): value for value in values}}.values()
        said = f"'{path}' is never {show(entry.plain())}; {_said(drawn)}" if drawn else never(path, entry, taken)
        return entry.error(f"{problem}: {said}", f"{owner}.{path}")
    if not crossed or any(rule.matches(flat) for flat in shown) or any(_may_meet(rule, grammar, crossed)):
        return None
    return rule.error(f"{problem}: {rule} never holds together", owner)


def _may_meet(rule: Rule, grammar: Grammar, crossed: Iterable[Flat]) -> Iterator[bool]:
    """Whether each assignment has what a rule asks for; what it does not say, it may have."""
    classes, known = _classes_of(rule, grammar), dict[tuple[str, Any], bool]()

    def is_meant(path: str, value: Any) -> bool:
        written = values_of(rule.entries[path].plain())
        return any(_is_same(path, one, other, grammar) for one in written for other in classes.meant(path, [value]))

    for flat in crossed:
        said = {path: value for path in rule.paths if (value := lookup(flat, path)) is not MISSING}
        keys = {path: (path, freeze(value)) for path, value in said.items()}
        for path, key in keys.items():
            if key not in known:
                known[key] = is_meant(path, said[path])
        yield all(known[key] for key in keys.values()) and _has_options(rule, flat)


def _has_options(rule: Rule, flat: Mapping[str, Any]) -> bool:
    """Whether the components of an assignment take the options that a rule is about, as far as they are known."""
    for path in rule.paths:
        head, _, option = path.partition(".")
        named = f"{head}.{NAME_KEYS.get(head)}"
        known = options_of(head, flat[named]) if isinstance(flat.get(named), str) and path != named else frozenset()
        if known and option.partition(".")[0] not in known:
            return False
    return True


def _is_open(path: str, grammar: Grammar, shown: Sequence[Mapping[str, Any]]) -> bool:
    """Whether neither axes nor examples have all values that a path may take."""
    if path == "seed":
        # Of a boundary, each trial has a seed of its own.
        return not isinstance(grammar.search, Planned)
    if any(crossed(path, other) and value is not None for other, value in _set(grammar)):
        return True
    head, _, option = path.partition(".")
    named = f"{head}.{NAME_KEYS.get(head)}"
    # The default of an option is only seen in an example with its component.
    unseen = {name for name in grammar.possible(named)[0] if isinstance(name, str)} - {
        flat.get(named) for flat in shown
    }
    return path != named and any(option.partition(".")[0] in options_of(head, name) for name in unseen)


def _set(grammar: Grammar) -> Iterator[tuple[str, Any]]:
    """Paths that the space sets, with their listed values."""
    for path, node in grammar.fixed.items():
        yield path, node.plain()
    for parameter in grammar.parameters.values():
        for row in parameter.rows:
            yield from row.items()


def _classes_of(rule: Rule, grammar: Grammar) -> NamedClasses:
    """How classes are compared, also where only this rule names one."""
    builder = Builder(grammar.data_roots, Path(grammar.root.where.file).parent)
    return NamedClasses(replace(grammar, exclude=(rule,)), builder)


def _listed(rule: Rule, path: str, grammar: Grammar) -> list[Any]:
    """The listed values of a path; classes as index and name."""
    return _classes_of(rule, grammar).meant(path, grammar.possible(path)[0])


def _is_same(path: str, one: Any, other: Any, grammar: Grammar) -> bool:
    """Whether two values of a path are the same in some component, however each is written."""
    named = f"{path.partition('.')[0]}.{NAME_KEYS.get(path.partition('.')[0])}"
    names = grammar.possible(named)[0] or [None]
    pairs = ((one, other), (other, one))
    return any(Written(path, [a]).means({named: name, path: b}) for name in names for a, b in pairs)


def _near(drawn: Distribution, written: Any) -> list[float]:
    """The draws nearest to a number, which may be a fraction where levels are drawn, or the other way round."""
    if isinstance(written, bool) or not isinstance(written, (int, float)):
        return []
    return [drawn.rounded(number) for number in (written, levels(written), written / levels(1))]


def _said(drawn: Distribution) -> str:
    steps = f" in steps of {drawn.q:g}" if drawn.q else ""
    return f"it is drawn from {drawn.min:g} to {drawn.max:g}{steps}"
