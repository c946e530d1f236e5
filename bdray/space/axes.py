"""Axes and partial matches: what a search space says about condition paths, from YAML to checked pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from bdray.condition import Condition
from bdray.errors import SpaceError, near, nearest
from bdray.poisoning.base import Poison
from bdray.recipes import Finetune, Train
from bdray.registry import Identified, explain
from bdray.searches.domain import Distribution, Flat, Kind
from bdray.space.source import Located, Where
from bdray.space.written import NAME_KEYS, Written
from bdray.values import quote, show

_OPTIONS = {
    "poison": {NAME_KEYS["poison"], *Poison.model_fields},
    "train": set(Train.model_fields),
    "finetune": set(Finetune.model_fields),
}
"""Options of the sections that all conditions share."""

LEAF_KEYS = ("value", "values", "when", "min", "max", "distribution", "q")

S = TypeVar("S", bound=Identified)


class Rule:
    """A partial match: every path has the value, or one of the listed values.

    A path below something that is null is null as well: `trigger.name: [patch, null]` matches baselines too.

    Args:
        beside: the folder of the search space, where a trigger's picture may lie; None: it is not known.
    """

    def __init__(self, entries: Mapping[str, Located], where: Where, beside: Path | None = None) -> None:
        self.entries, self.where, self.paths = dict(entries), where, tuple(entries)
        self._wanted = {path: Written(path, values_of(entry.plain()), beside) for path, entry in entries.items()}

    def wants(self, path: str, flat: Mapping[str, Any]) -> bool:
        """Whether flat content has one of the values that this rule names for `path`."""
        return bool(self._wanted[path].means(flat))

    def matches(self, flat: Mapping[str, Any]) -> bool | None:
        """True or False; None when `flat` leaves it open because some path is not in it."""
        known: bool | None = True
        for wanted in self._wanted.values():
            match = wanted.means(flat)
            if match is None:
                known = None
            elif not match:
                return False
        return known

    def plain(self) -> dict[str, Any]:
        return {path: entry.plain() for path, entry in self.entries.items()}

    def __str__(self) -> str:
        return show(self.plain())

    def error(self, problem: str, path: str) -> SpaceError:
        return SpaceError(problem, file=self.where.file, line=self.where.line, path=path)


@dataclass(frozen=True)
class Parameter:
    """One axis of a search space.

    Attributes:
        path: the dotted path it sets.
        values: what it takes, in order; empty for a distribution.
        distribution: what it is drawn from, or None.
        when: where it is present; None for everywhere.
        key: where its path stands in the file.
    """

    path: str
    values: tuple[Located, ...]
    distribution: Distribution | None
    when: Rule | None
    key: Where
    rows: tuple[Flat, ...] = field(init=False, repr=False)
    """What each value puts into a condition, by path (a value may be a whole section)."""
    paths: frozenset[str] = field(init=False, repr=False)
    """Every path it may set."""

    def __post_init__(self) -> None:
        rows = tuple(spread(self.path, value.plain()) for value in self.values)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "paths", frozenset(path for row in rows for path in row) or frozenset({self.path}))

    @property
    def asks(self) -> frozenset[str]:
        """The paths its `when` is about."""
        return frozenset(self.when.paths if self.when else ())

    def plain(self) -> dict[str, Any]:
        content: dict[str, Any] = {"values": [value.plain() for value in self.values]}
        if self.distribution:
            content = {key: value for key, value in vars(self.distribution).items() if value is not None}
        return content if self.when is None else {**content, "when": self.when.plain()}

    def error(self, problem: str) -> SpaceError:
        return SpaceError(problem, file=self.key.file, line=self.key.line, path=self.path)


def spread(path: str, value: Any) -> Flat:
    """What setting `path` to `value` means in flat paths."""
    if isinstance(value, Mapping):
        return {key: item for name, below in value.items() for key, item in spread(f"{path}.{name}", below).items()}
    return {f"{path}.{NAME_KEYS[path]}" if isinstance(value, str) and path in NAME_KEYS else path: value}


def crossed(path: str, other: str) -> bool:
    """Whether one of two different paths lies below the other."""
    return path.startswith(f"{other}.") or other.startswith(f"{path}.")


def values_of(plain: Any) -> list[Any]:
    """The values an entry names: those of its list, or itself."""
    return plain if isinstance(plain, list) else [plain]


def leaves(
    node: Located,
    owner: str,
    prefix: str = "",
    is_leaf: Callable[[Mapping[str, Located]], bool] = lambda content: False,
) -> dict[str, Located]:
    """The leaves of a nested or dotted mapping by dotted condition path; `model: resnet8` means `model.name: resnet8`.

    Args:
        is_leaf: whether a mapping is a value rather than a part of the path.

    Raises:
        SpaceError: not a mapping, a path given twice, or no path of a condition.
    """
    flat: dict[str, Located] = {}
    for key, value in node.mapping(owner).items():
        path = f"{prefix}{key}"
        check_path(path, value)
        if isinstance(value.content, dict) and not is_leaf(value.content):
            below = leaves(value, owner, f"{path}.", is_leaf)
        else:
            below = {f"{path}.{NAME_KEYS[path]}" if _names(path, value) else path: value}
        for name, leaf in below.items():
            if name in flat:
                raise leaf.error(f"is given twice (first on line {flat[name].key.line})", name, at_key=True)
            flat[name] = leaf
    return flat


def _names(path: str, node: Located) -> bool:
    """Whether this value of a component's section is its name: all of an axis's values, any of a rule's."""
    if path not in NAME_KEYS:
        return False
    if not isinstance(node.content, dict):
        return any(isinstance(value, str) for value in values_of(node.plain()))
    listed = values_of(node.plain().get("values", node.plain().get("value")))
    return bool(listed) and all(isinstance(value, str) for value in listed)


def check_path(path: str, node: Located) -> None:
    """Raises `SpaceError` unless `path` begins with a section of a condition."""
    head, *rest = path.split(".")
    if head not in Condition.model_fields:
        raise node.error(f"there is no section {head!r} in a condition; {_meant(head, node)}", path, at_key=True)
    if "" in rest:
        raise node.error("is not a path: a part of it is empty", path, at_key=True)


def _meant(head: str, node: Located) -> str:
    """What was meant by a section that is none: an option of one, or a name that is near."""
    if head == "evaluate":
        # Where it stood before questions were no part of a condition.
        said = node.plain()
        example = show(said) if isinstance(said, dict) and not set(said) & set(LEAF_KEYS) else "{probes: true}"
        return f"it is no part of one: write `evaluate: {example}` at the top of the file"
    inside = [f"'{section}.{head}'" for section, names in _OPTIONS.items() if head in names]
    return f"did you mean {' or '.join(inside)}?" if inside else nearest(head, Condition.model_fields)


def check_keys(node: Located, known: Iterable[str], owner: str) -> dict[str, Located]:
    """The content of a mapping that may only have the `known` keys."""
    known = tuple(known)
    content = node.mapping(owner)
    for key, value in content.items():
        if key not in known:
            path = f"{owner}.{key}" if owner else key
            raise value.error(f"unknown key '{key}'; {nearest(key, known, limit=20)}", path, at_key=True)
    return content


def listed(content: Mapping[str, Located], key: str, owner: str = "") -> list[Located]:
    """The items of the list at `key`; none where it is not given."""
    node = content.get(key)
    return [] if node is None or node.content is None else node.sequence(f"{owner}{key}")


def parse_section(node: Located | None, cls: type[S], owner: str) -> S:
    """A pydantic section from YAML; its defaults where it is not given.

    Raises:
        SpaceError: points to the line of the offending key or value.
    """
    if node is None or node.content is None:
        return cls()
    check_keys(node, cls.model_fields, owner)
    try:
        return cls.model_validate(node.plain())
    except ValidationError as error:
        path, problem = explain(error, cls, owner)
        raise deepest(node, path).error(problem, f"{owner}.{path}" if path else owner) from None


def deepest(node: Located, path: str) -> Located:
    """What stands at a dotted path below a node, or else the last that leads there."""
    for part in path.split("."):
        if not isinstance(node.content, dict) or part not in node.content:
            break
        node = node.content[part]
    return node


def parse_rule(node: Located, owner: str) -> Rule:
    """A partial match such as `{trigger.name: patch, poison.rate: [0.01, 0.1]}`."""
    entries = leaves(node, owner)
    if not entries:
        raise node.error("is empty: it would match everything", owner)
    for path, entry in entries.items():
        if entry.content == []:
            raise entry.error("the list is empty: nothing could match", f"{owner}.{path}")
    return Rule(entries, node.where, Path(node.where.file).parent)


def parse_rules(content: Mapping[str, Located], key: str) -> tuple[Rule, ...]:
    """The list of partial matches at `key`."""
    return tuple(parse_rule(item, f"{key}[{index}]") for index, item in enumerate(listed(content, key)))


def parse_parameters(node: Located | None) -> dict[str, Parameter]:
    """Every axis by path; paths are dotted, nested, or both."""
    if node is None or node.content is None:
        return {}
    return {path: parse_parameter(path, leaf) for path, leaf in leaves(node, "parameters", is_leaf=_is_leaf).items()}


def _is_leaf(content: Mapping[str, Located]) -> bool:
    # An option may be called `min`, so a mapping that holds mappings under such a name is a nested path.
    given = [key for key in LEAF_KEYS if key in content]
    return not content or any(key == "when" or not isinstance(content[key].content, dict) for key in given)


def parse_parameter(path: str, node: Located) -> Parameter:
    """One axis: `{value}`, `{values}` or `{min, max, distribution, q}`, each with `when` where it is not everywhere."""
    if path.partition(".")[0] == "seed":
        raise node.error("seeds are not a parameter: list them under `seeds`", path, at_key=True)
    if not isinstance(node.content, dict):
        example = "{values: [...]}" if isinstance(node.content, list) else f"{{value: {show(node.plain())}}}"
        above, _, word = path.rpartition(".")
        # A mapping without any of these keys counts as nested paths.
        hint = f"; or, as a key of '{above}': did you mean '{key}'?" if (key := near(word, LEAF_KEYS)) else ""
        raise node.error(f"must be a mapping such as {example}, got {quote(node.plain())}{hint}", path)
    content = check_keys(node, LEAF_KEYS, path)
    when = parse_rule(content["when"], f"{path}.when") if "when" in content else None
    given = [key for key in LEAF_KEYS if key in content and key != "when"]
    distribution: Distribution | None = None
    values: list[Located] = []
    if given == ["value"]:
        values = [content["value"]]
    elif given == ["values"]:
        values = content["values"].sequence(f"{path}.values")
        if not values:
            raise content["values"].error("the list is empty: the grid would be", f"{path}.values")
    elif given and not {"value", "values"} & set(given):
        distribution = _parse_distribution(path, node, content)
    else:
        problem = f"cannot have {' and '.join(given)} together" if given else "says nothing"
        raise node.error(f"{problem}: give value, values, or min and max", path)
    return Parameter(path, tuple(values), distribution, when, node.key)


def _parse_distribution(path: str, node: Located, content: Mapping[str, Located]) -> Distribution:
    given = {key: content[key].content for key in ("min", "max", "q", "distribution") if key in content}
    if missing := [key for key in ("min", "max") if key not in given]:
        raise node.error(f"a distribution needs min and max; {missing[0]} is missing", path)
    whole = all(isinstance(given[key], int) for key in ("min", "max"))
    kinds: tuple[Kind, ...] = get_args(Kind)
    kind = given.pop("distribution", kinds[2 if whole else 0])
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
            raise content[key].error(f"must be a number, got {quote(content[key].plain())}", f"{path}.{key}")
    checks: tuple[tuple[bool, str, str], ...] = (
        (kind in kinds, "distribution", f"there is no such distribution; {nearest(str(kind), kinds)}"),
        (given["min"] < given["max"], "max", "must be greater than min"),
        ("log" not in str(kind) or given["min"] > 0, "min", f"must be greater than 0 for {kind}"),
        (given.get("q", 1) > 0, "q", "must be greater than 0"),
        *(
            ("int" not in str(kind) or isinstance(value, int), key, f"{kind} needs whole numbers")
            for key, value in given.items()
        ),
    )
    for holds, key, problem in checks:
        if not holds:
            raise content[key].error(f"{problem} (got {quote(content[key].plain())})", f"{path}.{key}")
    found = Distribution(kind, **given)
    first, last = found.multiples
    if found.q and first > last:
        raise content["q"].error(f"no multiple of {found.q:g} lies between min and max", f"{path}.q")
    return found


def parse_zip(content: Mapping[str, Located], parameters: Mapping[str, Parameter]) -> tuple[tuple[str, ...], ...]:
    """Groups of parameters that advance together."""
    groups: list[tuple[str, ...]] = []
    for index, item in enumerate(listed(content, "zip")):
        owner, group = f"zip[{index}]", list[str]()
        for member in item.sequence(owner):
            path = member.content
            if not isinstance(path, str):
                raise member.error(f"must be a parameter's path, got {quote(member.plain())}", owner)
            path = path if path in parameters or path not in NAME_KEYS else f"{path}.{NAME_KEYS[path]}"
            if path not in parameters:
                raise member.error(f"there is no parameter {path!r}; {nearest(path, parameters)}", owner)
            if any(path in other for other in (*groups, group)):
                raise member.error(f"{path!r} is zipped twice", owner)
            if parameters[path].distribution is not None:
                raise member.error(f"{path!r} is a distribution: only lists can advance together", owner)
            group.append(path)
        if len(group) < 2:
            raise item.error("needs at least two parameters", owner)
        lengths = {path: len(parameters[path].values) for path in group}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{path} has {length}" for path, length in lengths.items())
            raise item.error(f"parameters that advance together need equally many values: {counts}", owner)
        groups.append(tuple(group))
    return tuple(groups)
