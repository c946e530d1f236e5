"""What a search space says, checked piece by piece: each of its keys is declared once, as a field of `Grammar`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from bdray.condition import MAX_SEED
from bdray.data.base import DATASETS
from bdray.detectors import DETECTORS, Detector
from bdray.errors import ComponentError, SpaceError, nearest
from bdray.plugins import PluginError, load_plugins
from bdray.recipes import Evaluate
from bdray.registry import Identified
from bdray.searches import SEARCHES, Planned, SearchMethod
from bdray.searches.domain import MISSING, lookup
from bdray.searches.metrics import Metric
from bdray.searches.replication import Replication
from bdray.shipped import find, is_file, nearest_to
from bdray.space.axes import (
    Parameter,
    Rule,
    check_keys,
    crossed,
    leaves,
    listed,
    parse_parameters,
    parse_rules,
    parse_section,
    parse_zip,
    spread,
)
from bdray.space.foreign import refuse_foreign
from bdray.space.overrides import ROOT, Overrides, gives_root
from bdray.space.resources import ResourceRules, parse_resources
from bdray.space.source import Located, load_yaml, parse_yaml
from bdray.values import quote

MAX_SEEDS = 10_000
"""More than anybody runs; a longer list is a mistake."""


TRACKING_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks", "uc", "file")
"""Of the URIs that `bdray.tracking` takes."""


class Tracking(Identified):
    """Where measurements are mirrored to."""

    experiment: str | None = Field(default=None, min_length=1)
    """MLflow experiment; the sweep's name where it is None."""
    uri: str | None = Field(default=None, min_length=1)
    """MLflow tracking URI; where it is None: `MLFLOW_TRACKING_URI`, else a database beside the sweep."""

    @field_validator("uri")
    @classmethod
    def _has_a_scheme_of_mlflow(cls, uri: str | None) -> str | None:
        scheme, colon, _ = (uri or "").partition("://")
        if colon and scheme.partition("+")[0] not in TRACKING_SCHEMES:
            raise ValueError(f"MLflow has no '{scheme}://'; {nearest(scheme, TRACKING_SCHEMES)}")
        return uri


@dataclass(frozen=True)
class Grammar:
    """The checked pieces of a search space.

    Attributes:
        name: what the sweep is called by default.
        seeds: replicates of every cell; the first ones where `replication` adds more.
        fixed: values that all conditions share, by dotted path.
        parameters: the axes, by dotted path.
        zip: groups of parameters that advance together.
        exclude: partial matches that are taken out of the grid.
        include: cells that are added, each over `fixed`.
        only: partial matches that every condition must meet (`--only`); with `baselines`, the twins of those stay.
        baselines: whether unpoisoned twins are added.
        detect: what is asked of each poisoned model and baseline.
        evaluate: what else is measured of models.
        data_roots: the folder of each data set, by its name; stands above the file's `data.root`.
        plugins: modules that register users' own components.
        plugin_path: folders where these may lie; the file's own is always among them.
        loosened: paths that the command line replaced: rules about them may match nothing.
        root: the document with the sections that the command line changed, for complaints about it.
    """

    name: str
    description: str
    seeds: tuple[int, ...]
    fixed: Mapping[str, Located]
    parameters: Mapping[str, Parameter]
    zip: tuple[tuple[str, ...], ...]
    exclude: tuple[Rule, ...]
    include: tuple[Mapping[str, Located], ...]
    only: tuple[Rule, ...]
    baselines: bool
    search: SearchMethod
    resources: ResourceRules
    tracking: Tracking
    detect: tuple[Detector, ...]
    evaluate: Evaluate
    data_roots: Mapping[str, str]
    plugins: tuple[str, ...]
    plugin_path: tuple[str, ...]
    replication: Replication | None = field(repr=False)
    loosened: frozenset[str] = field(repr=False)
    root: Located = field(repr=False)

    @property
    def varied(self) -> tuple[str, ...]:
        """The paths that parameters and included cells set, those of a whole section (`{name: patch, size: 5}`) one by
        one."""
        rows = [row for one in self.parameters.values() for row in one.rows or [{one.path: None}]]
        return tuple(dict.fromkeys(path for cell in (*rows, *self.include) for path in cell))

    def resolved(self) -> dict[str, Any]:
        """The space with everything the command line changed; loading it again gives the same conditions."""
        content = {key: _plain(getattr(self, key)) for key in KEYS}
        if self.replication is not None:
            content["seeds"] = self.replication.model_dump(exclude_none=True)
        return content

    def without(self, path: str) -> Grammar:
        """The same without the parameter at `path`."""
        groups = (tuple(member for member in group if member != path) for group in self.zip)
        parameters = {name: parameter for name, parameter in self.parameters.items() if name != path}
        return replace(self, parameters=parameters, zip=tuple(group for group in groups if len(group) > 1))

    def possible(self, path: str) -> tuple[list[Any], bool]:
        """The values a condition path may take, and whether a distribution may give others."""
        rows = [spread(name, node.plain()) for name, node in self.fixed.items()]
        rows += [row for parameter in self.parameters.values() for row in parameter.rows]
        found = [lookup(row, path) for row in rows]
        values = [*(self.seeds if path == "seed" else ()), *(value for value in found if value is not MISSING)]
        return values, any(axis.distribution and axis.path == path for axis in self.parameters.values())


KEYS = tuple(piece.name for piece in fields(Grammar) if piece.repr)
"""The keys of a search space."""


def _plain(value: Any) -> Any:
    if isinstance(value, (Located, Rule, Parameter, ResourceRules)):
        return value.plain()
    if isinstance(value, Identified):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def read_grammar(
    path: str | Path,
    overrides: Sequence[str],
    only: Sequence[str],
    seeds: Sequence[int] | None,
    text: str | None = None,
) -> Grammar:
    """The pieces of the search space in the YAML file `path`; see `bdray.space.load.load_space`. Loads its plugins.

    Raises:
        SpaceError: whatever is wrong with a piece by itself.
    """
    path = find(path) if text is None else Path(path)
    if text is None and not is_file(path) and (meant := nearest_to(path)):
        raise SpaceError(f"cannot be read: there is no such file; did you mean '{meant}'?", file=str(path))
    root = load_yaml(path) if text is None else parse_yaml(text, str(path))
    if root.content is None:
        raise root.error("is empty: a search space needs at least `fixed` or `parameters`")
    refuse_foreign(root)
    beside = Path(root.where.file).parent
    forced = Overrides.parse(check_keys(root, KEYS, ""), KEYS, overrides, only, seeds, beside=beside)
    content = forced.content
    plugins, plugin_path = load_named_plugins(content, path.absolute().parent if text is None else None)
    fixed = leaves(content["fixed"], "fixed") if _given(content, "fixed") else {}
    for name, node in (*fixed.items(), *forced.values.items()):
        if name.partition(".")[0] == "seed":
            raise node.error("seeds are not fixed: list them under `seeds`", name, at_key=True)
    parameters = {**parse_parameters(content.get("parameters")), **forced.parameters}
    roots = parse_data_roots(content.get("data_roots"))
    include = [leaves(item, f"include[{index}]") for index, item in enumerate(listed(content, "include"))]

    def kept(flat: Mapping[str, Any]) -> dict[str, Any]:
        replaced = forced.values
        return {n: v for n, v in flat.items() if n not in replaced and not any(crossed(n, new) for new in replaced)}

    grammar = Grammar(
        name=_scalar(content, "name", name_from(Path(path).stem), is_name, NAME_PROBLEM),
        description=_scalar(content, "description", "", lambda value: isinstance(value, str), "must be text"),
        seeds=parse_seeds(content.get("seeds")),
        replication=parse_replication(content.get("seeds")),
        fixed={**kept(fixed), **forced.values},
        parameters=parameters,
        zip=parse_zip(content, parameters),
        exclude=parse_rules(content, "exclude"),
        include=tuple(map(kept, include)),
        only=(*parse_rules(content, "only"), *forced.only),
        baselines=_scalar(content, "baselines", False, lambda value: isinstance(value, bool), "must be true or false"),
        search=_parse_search(content.get("search")),
        resources=parse_resources(content.get("resources")),
        tracking=parse_section(content.get("tracking"), Tracking, "tracking"),
        detect=parse_detect(content),
        evaluate=parse_section(content.get("evaluate"), Evaluate, "evaluate"),
        data_roots={name: root for name, root in roots.items() if not forced.gives_root_of(name)},
        plugins=plugins,
        plugin_path=plugin_path,
        loosened=frozenset(),
        root=replace(root, content=content),
    )
    if grammar.replication is not None:
        _check_replication(grammar, grammar.replication, content["seeds"])
    gone = set[str]()
    for name, axis in parameters.items():
        left = forced.left_of(axis, is_zipped=any(name in group for group in grammar.zip))
        if left is None:
            gone.add(name)
            grammar = grammar.without(name)
        else:
            grammar = replace(grammar, parameters={**grammar.parameters, name: left})
    _check_root_axes(grammar)
    return replace(grammar, loosened=frozenset({*forced.values, *forced.parameters, *gone, *forced.seeds}))


def load_named_plugins(content: Mapping[str, Located], beside: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Imports the modules that register users' own components. Returns their names and where they may lie.

    Args:
        beside: the folder of the search space; None: the source of its text is not trusted, and nothing is imported.
    """
    items = listed(content, "plugins")
    for item in items:
        if not isinstance(item.content, str) or not all(part.isidentifier() for part in item.content.split(".")):
            raise item.error(f"must be a module's name, got {quote(item.plain())}", "plugins")
    for folder in listed(content, "plugin_path"):
        if not isinstance(folder.content, str):
            raise folder.error(f"must be a folder, got {quote(folder.plain())}", "plugin_path")
    names = tuple(item.content for item in items)
    if beside is None:
        return names, ()
    folders = tuple(
        dict.fromkeys(str(beside / folder) for folder in (*(f.content for f in listed(content, "plugin_path")), ""))
    )
    try:
        load_plugins(names, folders)
    except PluginError as error:
        for item in items:
            if item.content == error.plugin:
                raise item.error(str(error), "plugins") from error
        raise
    return names, folders if names else ()


def parse_detect(content: Mapping[str, Located]) -> tuple[Detector, ...]:
    """Distinct detectors, by name or with options. The plugins that register these must be loaded."""
    found: list[Detector] = []
    for index, item in enumerate(listed(content, "detect")):
        path = f"detect[{index}]"
        if not isinstance(item.content, (str, dict)):
            raise item.error(f"must be a detector's name or a mapping, got {quote(item.plain())}", path)
        try:
            detector = DETECTORS.build(item.plain())
        except ComponentError as error:
            raise item.error(error.problem, f"{path}.{error.path}") from None
        if detector in found:
            raise item.error(f"'{detector.label}' is asked twice", path)
        found.append(detector)
    return tuple(found)


def parse_data_roots(node: Located | None) -> dict[str, str]:
    """Folders by the names of data sets. The plugins that register these must be loaded."""
    roots: dict[str, str] = {}
    if node is None or node.content is None:
        return roots
    for name, folder in node.mapping("data_roots").items():
        if name not in dict(DATASETS):
            problem = f"there is no data set '{name}'; {nearest(name, DATASETS.names())}"
            raise folder.error(problem, f"data_roots.{name}", at_key=True)
        if not isinstance(folder.content, str) or not folder.content:
            raise folder.error(f"must be a folder, got {quote(folder.plain())}", f"data_roots.{name}")
        roots[name] = folder.content
    return roots


def roots_of_options(overrides: Sequence[str]) -> dict[str, str]:
    """The folders of data sets that texts such as `data_roots.flowers=/data/flowers` give."""
    nothing = Overrides.parse({}, KEYS, overrides, (), None)
    return parse_data_roots(nothing.content.get("data_roots"))


def parse_seeds(node: Located | None) -> tuple[int, ...]:
    """Distinct whole numbers from 0, at most `MAX_SEEDS`."""
    if node is None:
        return (0,)
    if isinstance(node.content, dict):
        return tuple(range(parse_section(node, Replication, "seeds").min))
    seeds: dict[int, None] = {}
    items = node.sequence("seeds")
    if len(items) > MAX_SEEDS:
        raise node.error(f"lists {len(items):,} seeds; at most {MAX_SEEDS:,} are taken", "seeds")
    for item in items:
        seed = item.content
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise item.error(f"seeds are whole numbers from 0 to {MAX_SEED}, got {quote(item.plain())}", "seeds")
        if seed in seeds:
            raise item.error(f"{seed} is listed twice", "seeds")
        seeds[seed] = None
    if not seeds:
        raise node.error("the list is empty: the grid would be", "seeds")
    return tuple(seeds)


def parse_replication(node: Located | None) -> Replication | None:
    """`{min, max, until}`; None where seeds are listed."""
    return parse_section(node, Replication, "seeds") if node is not None and isinstance(node.content, dict) else None


def _check_replication(grammar: Grammar, rule: Replication, node: Located) -> None:
    if not isinstance(grammar.search, Planned):
        problem = f"`{{min, max, until}}` goes with a grid, pairwise or random; the method is {grammar.search.name}"
        raise node.error(problem, "seeds")
    if Metric(rule.until.metric).needs_twin and not grammar.baselines:
        raise node.error(f"{rule.until.metric} compares with baselines: set `baselines: true`", "seeds.until.metric")


def _check_root_axes(grammar: Grammar) -> None:
    """Raises `SpaceError` where `data_roots` leaves one of several folders whose pictures make the condition."""
    possible, _ = grammar.possible("data.name")
    for name in grammar.data_roots:
        if name not in possible or "content" not in DATASETS.get(name).model_fields:
            continue
        for axis in grammar.parameters.values():
            folders = {row[ROOT] for row in axis.rows if ROOT in row and row.get("data.name", name) == name}
            if len(folders) > 1 and gives_root(axis, name):
                problem = f"data_roots has one folder for {name}, so none of these {len(folders)} counts; leave one out"
                raise SpaceError(problem, file=axis.key.file, line=axis.key.line, path=ROOT)


NAME_PROBLEM = "must be up to 100 letters, digits, '-', '_' and '.', not beginning with '-' or '.'"


def is_name(value: Any) -> bool:
    """Whether a sweep may be called so: its name is a folder's, an experiment's, and is typed into a shell."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", value) is not None


def name_from(text: str, most: int = 100) -> str:
    """The name most like a text that a sweep may have, of up to `most` characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:most] or "sweep"


def _given(content: Mapping[str, Located], key: str) -> bool:
    return key in content and content[key].content is not None


def _scalar(content: Mapping[str, Located], key: str, default: Any, fits: Callable[[Any], bool], problem: str) -> Any:
    node = content.get(key)
    if node is None or (node.content is None and key == "description"):
        return default
    if not fits(node.content):
        raise node.error(f"{problem} (got {quote(node.plain())})", key)
    return node.content


def _parse_search(node: Located | None) -> SearchMethod:
    if node is None or node.content is None:
        return SEARCHES.build("grid")
    named = {"method": "grid"} | ({} if not isinstance(node.content, dict) else node.plain())
    content = node.mapping("search")
    try:
        # Which keys there are is a question of the method.
        known = SEARCHES.get(named["method"]) if isinstance(named["method"], str) else SearchMethod
        check_keys(node, ("method", *known.model_fields), "search")
        search = SEARCHES.build(named)
    except ComponentError as error:
        raise content.get(error.path.split(".")[0], node).error(error.problem, f"search.{error.path}") from None
    if problem := search.problem():
        option, said = problem
        raise content.get(option, node).error(said, f"search.{option}", at_key=option in content)
    return search
