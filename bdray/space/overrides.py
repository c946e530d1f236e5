"""What the command line changes of a search space: `--set`, `--only`, `--seeds`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bdray.condition import MAX_SEED, Condition
from bdray.errors import SpaceError, nearest
from bdray.space.axes import Parameter, Rule, leaves, parse_parameters, spread
from bdray.space.source import Located, Where, parse_yaml
from bdray.space.written import NAME_KEYS
from bdray.values import freeze, quote, show

MAX_RANGE = 10_000
"""Seeds in one range of `--seeds`."""

ROOT = "data.root"


@dataclass
class Overrides:
    """What is replaced.

    Attributes:
        content: the sections of the space, with those that the command line changed.
        values: condition paths that have one value, whatever the file says.
        parameters: whole axes.
        only: what every condition must match.
        seeds: the path `seed`, where the file's seeds are replaced.
    """

    content: dict[str, Located]
    values: dict[str, Located] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    only: tuple[Rule, ...] = ()
    seeds: frozenset[str] = frozenset()

    @classmethod
    def parse(
        cls,
        content: Mapping[str, Located],
        keys: Sequence[str],
        overrides: Sequence[str],
        only: Sequence[str],
        seeds: Sequence[int] | None,
        *,
        beside: Path | None = None,
    ) -> Overrides:
        """The texts of the options; see `bdray.space.load.load_space`.

        Args:
            content: the sections as the file has them.
            keys: the sections that there are.
            beside: the folder of the search space.
        """
        forced = cls(dict(content))
        for text in overrides:
            forced.set(*_assignment(text, "--set"), keys)
        forced.only = parse_rules_of_options(only, "--only", beside)
        typed = [value.where for path, value in forced.values.items() if path == ROOT]
        typed += [axis.key for axis in forced.parameters.values() if ROOT in axis.paths]
        if typed and forced.content.get("data_roots") is not content.get("data_roots"):
            raise SpaceError("is typed beside --data-root; give one of them", file=typed[0].file, path=ROOT)
        if seeds is not None:
            here = Where("--seeds")
            forced.set("seeds", Located([Located(number, here, here) for number in seeds], here, here), keys)
        return forced

    def gives_root_of(self, name: str) -> bool:
        """Whether `data.root` of this data set is among it."""
        return ROOT in self.values or any(gives_root(axis, name) for axis in self.parameters.values())

    def left_of(self, axis: Parameter, *, is_zipped: bool) -> Parameter | None:
        """An axis of the file without what `values` stand for: only some options of its values, or all of it (None).

        Args:
            is_zipped: whether each of its values belongs to one of another axis.

        Raises:
            SpaceError: a value has no options.
        """
        # Another component has other options, but all strategies share most of theirs.
        names = f"{axis.path}.{NAME_KEYS.get(axis.path)}"
        if self._stands_for(axis.path) or (names in self.values and axis.path != "poison"):
            return None
        if not any(path.startswith(f"{axis.path}.") for path in self.values):
            return axis
        values = [self._without(value, axis.path) for value in axis.values]
        distinct = {freeze(spread(axis.path, value.plain())): value for value in values}
        if distinct.keys() <= {freeze({})}:
            return None
        return replace(axis, values=tuple(values if is_zipped else distinct.values()))

    def _stands_for(self, path: str) -> bool:
        return any(path == given or path.startswith(f"{given}.") for given in self.values)

    def _without(self, value: Located, path: str) -> Located:
        """What a value at `path` says of other paths."""
        if isinstance(value.content, dict):
            below = {key: (f"{path}.{key}", item) for key, item in value.content.items()}
            left = {key: self._without(item, at) for key, (at, item) in below.items() if not self._stands_for(at)}
            return replace(value, content=left)
        for given, node in self.values.items():
            if given.startswith(f"{path}."):
                if not (isinstance(value.content, str) and path in NAME_KEYS):
                    problem = f"cannot be set: '{path}' is {show(value.plain())} too, which has no options"
                    raise node.error(problem, given)
                if given == f"{path}.{NAME_KEYS[path]}":
                    return replace(value, content={})
        return value

    def set(self, path: str, value: Located, keys: Sequence[str]) -> None:
        """Replace what stands at a condition path, or at a path of the space's own sections."""
        head, _, rest = path.partition(".")
        if path == "seed" or head == "seeds":
            self._set_seeds(rest, value)
        elif head == "parameters" and rest:
            self.parameters.update(parse_parameters(Located({rest: value}, value.where, value.key)))
        elif (head == "fixed" and rest) or (head not in keys and head in Condition.model_fields):
            self.values.update(_flat_value(rest if head == "fixed" else path, value))
        elif head in keys:
            self.content[head] = _deep_set(self.content.get(head), rest.split(".") if rest else [], value)
        else:
            raise value.error(f"there is no '{head}'; {nearest(head, [*keys, *Condition.model_fields])}", path)

    def _set_seeds(self, key: str, value: Located) -> None:
        """All seeds, or one key of `{min, max, until}`."""
        known = self.content.get("seeds")
        if key:
            if known is not None and isinstance(known.content, list):
                problem = f"the search space lists seeds: {quote(known.plain())}; only {{min, max, until}} has keys"
                raise value.error(problem, f"seeds.{key}")
            value = _deep_set(known, key.split("."), value)
        elif not isinstance(value.content, (list, dict)):
            value = Located([value], value.where, value.key)
        self.content["seeds"], self.seeds = value, frozenset({"seed"})


def gives_root(axis: Parameter, name: str) -> bool:
    """Whether an axis says where a data set lies."""
    return ROOT in axis.paths and (axis.when is None or axis.when.matches({"data.name": name}) is not False)


def changes_of(overrides: Sequence[str], seeds: Sequence[int] | None, keys: Sequence[str]) -> dict[str, Any]:
    """What the options change of one condition, by path; `data_roots` stands for itself.

    Args:
        keys: the sections that a search space has.

    Raises:
        SpaceError: it changes what only a whole space has.
    """
    forced = Overrides.parse({}, keys, overrides, (), seeds)
    changes = {path: value.plain() for path, value in forced.values.items()}
    for section, node in forced.content.items():
        if section == "seeds" and isinstance(given := node.plain(), list) and len(given) == 1:
            changes["seed"] = given[0]
        elif section != "data_roots":
            raise node.error("is for a search space; this is one condition", section)
    for path, axis in forced.parameters.items():
        raise SpaceError("is for a search space; this is one condition", file=axis.key.file, path=path)
    return changes


def parse_rules_of_options(texts: Sequence[str], option: str, beside: Path | None = None) -> tuple[Rule, ...]:
    """A partial match for each `path=value`; the value may be a list.

    Args:
        beside: the folder of the search space they are about.

    Raises:
        SpaceError: a text that is not `path=value`, or a path that no condition has.
    """
    rules = [_assignment(text, option) for text in texts]
    return tuple(Rule(_flat_value(path, value), value.where, beside) for path, value in rules)


def parse_seed_list(text: str) -> list[int]:
    """Seeds as the command line gives them: "0,1,2", "0-4", or both.

    Raises:
        SpaceError: anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*0*([0-9]{1,19})(?:\s*-\s*0*([0-9]{1,19}))?\s*", part)
        if match is None:
            problem = f"{quote(part)} is neither a whole number from 0 to {MAX_SEED} nor a range such as 0-4"
            raise SpaceError(problem, file="--seeds")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < MAX_RANGE:
            raise SpaceError(f"{quote(part)} is not a range of up to {MAX_RANGE:,} seeds", file="--seeds")
        seeds += range(first, last + 1)
    return seeds


def _assignment(text: str, option: str) -> tuple[str, Located]:
    """The path and the value of `path=value`."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SpaceError(f"must be {option} path=value", file=f"{option} {text}")
    # `--data-root NAME=DIR` comes as the `--set` that it stands for.
    is_root = path.startswith("data_roots.")
    said = f"--data-root {text.removeprefix('data_roots.')}" if is_root else f"{option} {text}"
    return path.strip(), parse_yaml(value, said, lines=False)


def _flat_value(path: str, value: Located) -> dict[str, Located]:
    """`path` and `value` as `fixed` would hold them."""
    return leaves(Located({path: value}, value.where, value.key), path)


def _deep_set(node: Located | None, path: list[str], value: Located) -> Located:
    """`node` with the value at `path` replaced."""
    if not path:
        return value
    entries = dict(node.content) if node is not None and isinstance(node.content, dict) else {}
    entries[path[0]] = _deep_set(entries.get(path[0]), path[1:], value)
    place = node or value
    return Located(entries, place.where, place.key)
