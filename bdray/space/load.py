"""A search space: the YAML file that says which conditions there are, checked down to every condition.

`load_space` reads, checks and expands in one go, so that whoever holds a `SearchSpace` holds a good one; all it raises
is `SpaceError`, which names the file, the line, the key path, what is wrong and the nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from bdray.condition import Condition
from bdray.errors import SpaceError, nearest
from bdray.plugins import PluginError, load_plugins
from bdray.registry import Identified
from bdray.space.expansion import Expansion, Flats, Grammar, expand, no_match
from bdray.space.grammar import (
    Parameter,
    ResourceRules,
    Resources,
    Rule,
    Search,
    Tracking,
    canonical,
    check_keys,
    check_path,
    flatten_located,
    parse_parameter,
    parse_parameters,
    parse_resources,
    parse_rules,
    parse_section,
    parse_seeds,
    parse_zip,
    show_plain,
)
from bdray.space.source import Located, Where, dump_yaml, load_yaml, parse_yaml, show

KEYS = (
    "name",
    "description",
    "seeds",
    "fixed",
    "parameters",
    "zip",
    "exclude",
    "include",
    "only",
    "baselines",
    "search",
    "resources",
    "tracking",
    "plugins",
    "plugin_path",
)

S = TypeVar("S", bound=Identified)


@dataclass(frozen=True)
class SearchSpace:
    """What a sweep runs. Made by `load_space`.

    Attributes:
        name: what the sweep is called by default.
        seeds: replicates of every cell.
        fixed: values that all conditions share, by dotted path.
        parameters: the axes, by dotted path.
        zip: groups of parameters that advance together.
        exclude: partial matches that are taken out of the grid.
        include: cells that are added, each over `fixed`.
        only: partial matches that every condition must meet (`--only`).
        baselines: whether unpoisoned twins are added.
        plugins: modules that register users' own components.
        plugin_path: folders where these may lie; the file's own is always among them.
        expansion: the conditions, and counts of how they came about.
    """

    name: str
    description: str
    seeds: tuple[int, ...]
    fixed: Mapping[str, Any]
    parameters: Mapping[str, Parameter]
    zip: tuple[tuple[str, ...], ...]
    exclude: tuple[Rule, ...]
    include: tuple[Mapping[str, Any], ...]
    only: tuple[Rule, ...]
    baselines: bool
    search: Search
    resources: ResourceRules
    tracking: Tracking
    plugins: tuple[str, ...]
    plugin_path: tuple[str, ...]
    expansion: Expansion = field(repr=False, compare=False)
    _flats: Flats = field(default_factory=Flats, repr=False, compare=False)

    def conditions(self) -> list[Condition]:
        """Every condition, unique by `condition_id`, by seed and then in the order of the axes."""
        return list(self.expansion.conditions)

    def flat(self, condition: Condition) -> Mapping[str, Any]:
        """`condition.flat()`, remembered section by section: for whoever asks for thousands."""
        return self._flats(condition)

    def resources_for(self, condition: Condition) -> Resources:
        """What the trial of `condition` asks for: CPUs, and GPUs (rounded up to 1/n) or "auto"."""
        return self.resources.resolve(self.flat(condition) if self.resources.overrides else {})

    def resolved(self) -> dict[str, Any]:
        """The space with everything the command line changed; loading it again gives the same conditions."""
        content: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "seeds": list(self.seeds),
            "fixed": dict(self.fixed),
            "parameters": {path: parameter.plain() for path, parameter in self.parameters.items()},
            "zip": [list(group) for group in self.zip],
            "exclude": [rule.plain() for rule in self.exclude],
            "include": [dict(cell) for cell in self.include],
            "only": [rule.plain() for rule in self.only],
            "baselines": self.baselines,
            "search": self.search.model_dump(),
            "resources": self.resources.plain(),
            "tracking": self.tracking.model_dump(),
            "plugins": list(self.plugins),
            "plugin_path": list(self.plugin_path),
        }
        return content

    def to_yaml(self) -> str:
        """`resolved()` as text: the sweep folder's `space.yaml`."""
        return dump_yaml(self.resolved())


def load_space(
    path: str | Path,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: Sequence[int] | str | None = None,
) -> SearchSpace:
    """The search space in the YAML file `path`.

    Args:
        overrides: `path=value` texts. A condition path takes the place of whatever the file says for it; a top-level
            one (`search.method=random`, `baselines=false`) changes that section.
        only: `path=value` texts; conditions that do not match are left out. The value may be a list.
        seeds: instead of the file's; a sequence, or text such as "0,1,2" or "0-4".

    Raises:
        SpaceError: whatever is wrong, with file, line and key path.
    """
    root = load_yaml(path)
    if root.content is None:
        raise root.error("is empty: a search space needs at least `fixed` or `parameters`")
    content = dict(check_keys(root, KEYS, ""))
    forced = _apply_overrides(content, overrides)
    if seeds is not None:
        numbers = parse_seed_list(seeds) if isinstance(seeds, str) else list(seeds)
        here = Where("--seeds")
        content["seeds"] = Located([Located(number, here, here) for number in numbers], here, here)
        forced.seeds = True
    plugins, plugin_path = _load_plugins(content, path)
    grammar = _grammar(root, content, forced, tuple(_only(text) for text in only))
    expansion = expand(grammar)
    space = SearchSpace(
        name=_name(content.get("name"), path),
        description=_text(content.get("description")),
        seeds=grammar.seeds,
        fixed={key: value.plain() for key, value in grammar.fixed.items()},
        parameters=expansion.parameters,
        zip=expansion.zip,
        exclude=expansion.exclude,
        include=tuple({key: value.plain() for key, value in cell.items()} for cell in grammar.include),
        only=grammar.only,
        baselines=grammar.baselines,
        search=grammar.search,
        resources=parse_resources(content.get("resources")),
        tracking=_optional_section(content.get("tracking"), Tracking, "tracking"),
        plugins=plugins,
        plugin_path=plugin_path,
        expansion=expansion,
    )
    return _with_used_resources(space, grammar.loosened)


def parse_seed_list(text: str) -> list[int]:
    """Seeds as the command line gives them: "0,1,2", "0-4", or both.

    Raises:
        SpaceError: anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?\s*", part)
        if match is None:
            raise SpaceError(f"{part!r} is neither a number nor a range such as 0-4", file="--seeds")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < 10_000:
            raise SpaceError(f"{part!r} is not a range of up to 10,000 seeds", file="--seeds")
        seeds += range(first, last + 1)
    return seeds


def _grammar(root: Located, content: Mapping[str, Located], forced: _Overrides, only: tuple[Rule, ...]) -> Grammar:
    fixed = flatten_located(content["fixed"], "fixed") if _given(content, "fixed") else {}
    for path, node in fixed.items():
        if path.partition(".")[0] == "seed":
            raise node.error("seeds are not fixed: list them under `seeds`", path, at_key=True)
    parameters = parse_parameters(content["parameters"]) if _given(content, "parameters") else {}
    parameters = {**parameters, **forced.parameters}
    groups = parse_zip(content.get("zip"), parameters)
    include = [
        flatten_located(item, f"include[{index}]")
        for index, item in enumerate(content["include"].sequence("include") if _given(content, "include") else [])
    ]
    replaced = set(forced.values)
    gone = {path for path in parameters if _under(path, replaced)}
    groups = tuple(tuple(path for path in group if path not in gone) for group in groups)
    return Grammar(
        seeds=parse_seeds(content.get("seeds")),
        fixed={**{path: node for path, node in fixed.items() if not _under(path, replaced)}, **forced.values},
        parameters={path: parameter for path, parameter in parameters.items() if path not in gone},
        zip=tuple(group for group in groups if len(group) > 1),
        exclude=parse_rules(content.get("exclude"), "exclude"),
        include=tuple({path: n for path, n in cell.items() if not _under(path, replaced)} for cell in include),
        baselines=_boolean(content.get("baselines"), "baselines"),
        search=_search(content.get("search")),
        only=(*parse_rules(content.get("only"), "only"), *only),
        loosened=frozenset({*replaced, *forced.parameters, *gone, *(["seed"] if forced.seeds else [])}),
        root=root,
    )


def _given(content: Mapping[str, Located], key: str) -> bool:
    return key in content and content[key].content is not None


def _under(path: str, replaced: Iterable[str]) -> bool:
    """Whether a replaced path is this one, above it, or below it."""
    return any(path == new or path.startswith(f"{new}.") or new.startswith(f"{path}.") for new in replaced)


@dataclass
class _Overrides:
    """What `--set` replaces: condition paths by a value, and whole parameters."""

    values: dict[str, Located] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    seeds: bool = False


def _apply_overrides(content: dict[str, Located], overrides: Iterable[str]) -> _Overrides:
    """Changes the top-level sections in `content`; returns what is replaced below them."""
    forced = _Overrides()
    for text in overrides:
        path, value = _assignment(text, "--set")
        head, _, rest = path.partition(".")
        if path == "seed" or head == "seeds":
            content["seeds"] = value if isinstance(value.content, list) else Located([value], value.where, value.key)
            forced.seeds = True
        elif head == "parameters" and rest:
            check_path(rest, value)
            parameter = parse_parameter(rest, value)
            forced.parameters[parameter.path] = parameter
        elif head == "fixed" and rest:
            forced.values.update(_flat_value(rest, value))
        elif head in KEYS:
            content[head] = _deep_set(content.get(head), rest.split(".") if rest else [], value)
        elif head in Condition.model_fields:
            forced.values.update(_flat_value(path, value))
        else:
            raise value.error(f"there is no '{head}'; {nearest(head, [*KEYS, *Condition.model_fields])}", path)
    return forced


def _assignment(text: str, option: str) -> tuple[str, Located]:
    """The path and the value of `path=value`."""
    file = f"{option} {show_plain(text)}"
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SpaceError(f"must be {option} path=value", file=file)
    return path.strip(), parse_yaml(value, file, lines=False)


def _flat_value(path: str, value: Located) -> dict[str, Located]:
    check_path(path, value)
    if isinstance(value.content, dict):
        return flatten_located(value, path, f"{path}.")
    return {canonical(path, value): value}


def _deep_set(node: Located | None, path: list[str], value: Located) -> Located:
    """`node` with the value at `path` replaced."""
    if not path:
        return value
    entries = dict(node.content) if node is not None and isinstance(node.content, dict) else {}
    entries[path[0]] = _deep_set(entries.get(path[0]), path[1:], value)
    place = node or value
    return Located(entries, place.where, place.key)


def _only(text: str) -> Rule:
    path, value = _assignment(text, "--only")
    return Rule(_flat_value(path, value), value.where)


def load_plugins_of(path: str | Path) -> None:
    """Load the plugins that the search space in the YAML file `path` names; nothing else of it is read.

    Raises:
        SpaceError: they cannot be imported, or the file cannot be read.
    """
    root = load_yaml(path)
    _load_plugins(root.content if isinstance(root.content, dict) else {}, path)


def _load_plugins(content: Mapping[str, Located], path: str | Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Imports the modules that register users' own components. Returns their names and where they may lie."""
    items = content["plugins"].sequence("plugins") if _given(content, "plugins") else []
    for item in items:
        if not isinstance(item.content, str) or not all(part.isidentifier() for part in item.content.split(".")):
            raise item.error(f"must be a module's name, got {show(item.plain())}", "plugins")
    listed = content["plugin_path"].sequence("plugin_path") if _given(content, "plugin_path") else []
    for folder in listed:
        if not isinstance(folder.content, str):
            raise folder.error(f"must be a folder, got {show(folder.plain())}", "plugin_path")
    # Absolute, so that the frozen space finds from another folder what lay beside this one.
    here = Path(path).absolute().parent
    folders = tuple(dict.fromkeys(str(here / folder) for folder in [*(item.content for item in listed), ""]))
    names = tuple(item.content for item in items)
    try:
        load_plugins(names, folders)
    except PluginError as error:
        for item in items:
            if item.content == error.plugin:
                raise item.error(str(error), "plugins") from error
        raise
    return names, folders if names else ()


def _name(node: Located | None, path: str | Path) -> str:
    if node is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).strip(".-") or "sweep"
    name = node.content
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        problem = "must be up to 100 letters, digits, '-', '_' and '.', not beginning with '-' or '.'"
        raise node.error(f"{problem} (got {show(node.plain())})", "name")
    return name


def _text(node: Located | None) -> str:
    if node is None or node.content is None:
        return ""
    if not isinstance(node.content, str):
        raise node.error(f"must be text, got {show(node.plain())}", "description")
    return node.content


def _boolean(node: Located | None, path: str) -> bool:
    if node is None:
        return False
    if not isinstance(node.content, bool):
        raise node.error(f"must be true or false, got {show(node.plain())}", path)
    return node.content


def _optional_section(node: Located | None, cls: type[S], path: str) -> S:
    return cls() if node is None or node.content is None else parse_section(node, cls, path)


def _search(node: Located | None) -> Search:
    method = node.content.get("method") if node is not None and isinstance(node.content, dict) else None
    if method is not None and method.content == "optuna":
        raise method.error("'optuna' is not available yet; the methods are grid, pairwise and random", "search.method")
    search = _optional_section(node, Search, "search")
    if node is not None and search.method == "random" and search.max_trials is None:
        raise node.error("`method: random` needs max_trials: how many conditions to draw", "search.max_trials")
    if node is not None and search.method != "random" and search.max_trials is not None:
        problem = f"belongs to `method: random`; the method is {search.method}"
        raise node.content["max_trials"].error(problem, "search.max_trials", at_key=True)
    return search


def _with_used_resources(space: SearchSpace, loosened: frozenset[str]) -> SearchSpace:
    """The space without resource overrides about paths that the command line replaced; others must match."""
    kept = []
    for rule, needs in space.resources.overrides:
        if any(rule.matches(space.flat(condition)) for condition in space.expansion.unfiltered):
            kept.append((rule, needs))
        elif loosened.isdisjoint(rule.paths) and space.search.method != "random":
            raise no_match(rule, space.expansion.unfiltered, "resources.overrides.when", "matches no condition")
    return replace(space, resources=replace(space.resources, overrides=tuple(kept)))
