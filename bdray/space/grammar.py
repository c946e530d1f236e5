"""The words of a search space: paths, parameters, distributions, partial matches, and the small sections.

Everything here turns `Located` YAML into typed, checked pieces. Nothing here knows how they are crossed
(`bdray.space.expansion`) or what a condition is made of beyond the names of its sections.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import Field, ValidationError, field_validator

from bdray.condition import COMPONENTS, Condition
from bdray.errors import SpaceError, nearest
from bdray.gpu import round_gpu, show_gpu
from bdray.registry import Identified as Section
from bdray.registry import explain
from bdray.space.source import Located, Where, show

Flat = dict[str, Any]
"""Values by dotted condition path."""

NAME_KEYS = {section: registry.name_key for section, registry in COMPONENTS.items()}
"""Sections that are components, and the key that names them: `model: resnet8` means `model.name: resnet8`."""

LEAF_KEYS = ("value", "values", "when", "min", "max", "distribution", "q")

Kind = Literal["uniform", "log_uniform", "int_uniform"]

MISSING = object()
"""What `lookup` finds at a path that is not there."""

S = TypeVar("S", bound=Section)


class Search(Section):
    """How conditions are chosen from the grammar."""

    method: Literal["grid", "random", "pairwise"] = "grid"
    """`pairwise`: few cells of the grid, in which every pair of values that meets in the grid still meets."""
    max_trials: int | None = Field(default=None, ge=1)
    """How many conditions `random` draws; included cells and baselines come on top."""
    seed: int = Field(default=0, ge=0)
    """What `random` draws from."""


class Tracking(Section):
    """Where measurements are mirrored to."""

    experiment: str | None = Field(default=None, min_length=1)
    """MLflow experiment; the sweep's name where it is None."""
    uri: str | None = Field(default=None, min_length=1)
    """MLflow tracking URI; a database beside the sweep where it is None."""


class Resources(NamedTuple):
    """What one trial asks Ray for."""

    cpu: float
    gpu: float | Literal["auto"]


class Needs(Section):
    """`cpu` and `gpu` of a trial, where they are given."""

    cpu: float | None = Field(default=None, gt=0.0, le=1e6)
    gpu: float | Literal["auto"] | None = Field(default=None)

    @field_validator("gpu", mode="before")
    @classmethod
    def _auto_or_number(cls, gpu: Any) -> Any:
        number = isinstance(gpu, (int, float)) and not isinstance(gpu, bool) and 0 <= gpu <= 1e6
        if not (gpu is None or gpu == "auto" or number):
            raise ValueError("must be 'auto' or a number from 0")
        return gpu


class Rule:
    """A partial match: every path has the value, or one of the listed values.

    A path below something that is null is null as well: `trigger.name: [patch, null]` matches baselines too.
    """

    def __init__(self, entries: Mapping[str, Located], where: Where) -> None:
        self.entries, self.where = dict(entries), where
        self._wanted = {path: frozenset(map(freeze, values_of(entry))) for path, entry in entries.items()}

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self.entries)

    def wants(self, path: str, value: Any) -> bool:
        """Whether `value` is one that this rule names for `path`."""
        return freeze(value) in self._wanted[path]

    def matches(self, flat: Mapping[str, Any]) -> bool | None:
        """True or False; None when `flat` leaves it open because some path is not in it."""
        known: bool | None = True
        for path, wanted in self._wanted.items():
            value = lookup(flat, path)
            if value is MISSING:
                known = None
            elif freeze(value) not in wanted:
                return False
        return known

    def plain(self) -> dict[str, Any]:
        return {path: entry.plain() for path, entry in self.entries.items()}

    def __str__(self) -> str:
        return "{" + ", ".join(f"{path}: {show_plain(entry.plain())}" for path, entry in self.entries.items()) + "}"


@dataclass(frozen=True)
class Distribution:
    """Numbers drawn at random: `uniform`, `log_uniform` or `int_uniform` between `min` and `max` (both included).

    `q` rounds draws to its multiples.
    """

    kind: Kind
    min: float
    max: float
    q: float | None = None

    def draw(self, unit: float) -> float | int:
        """The value at quantile `unit`, in [0, 1)."""
        if self.kind == "int_uniform":
            low, high = int(self.min), int(self.max)
            return min(high, low + math.floor(unit * (high - low + 1)))
        if self.kind == "log_uniform":
            value = math.exp(math.log(self.min) + unit * (math.log(self.max) - math.log(self.min)))
        else:
            value = self.min + unit * (self.max - self.min)
        if self.q is not None:
            # Through a decimal string, so that 3 * 0.1 is written 0.3.
            value = float(f"{round(value / self.q) * self.q:.12g}")
        return min(max(value, self.min), self.max)

    def plain(self) -> dict[str, Any]:
        content: dict[str, Any] = {"min": self.min, "max": self.max, "distribution": self.kind}
        return content if self.q is None else {**content, "q": self.q}


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(spread(self.path, value.plain()) for value in self.values))

    @property
    def paths(self) -> frozenset[str]:
        """Every path it may set."""
        return frozenset(path for row in self.rows for path in row) if self.rows else frozenset({self.path})

    def plain(self) -> dict[str, Any]:
        content = self.distribution.plain() if self.distribution else {"values": [v.plain() for v in self.values]}
        return content if self.when is None else {**content, "when": self.when.plain()}

    def error(self, problem: str) -> SpaceError:
        return SpaceError(problem, file=self.key.file, line=self.key.line, path=self.path)


def freeze(value: Any) -> Any:
    """A hashable stand-in that is equal for equal JSON values: 1 and 1.0 are, true and 1 are not."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, Mapping):
        return ("map", frozenset((key, freeze(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return ("list", *map(freeze, value))
    return value


def lookup(flat: Mapping[str, Any], path: str) -> Any:
    """The value at `path`, None below a null, or a mark that `freeze`d values never equal."""
    value = flat.get(path, MISSING)
    while value is MISSING and "." in path:
        path = path.rpartition(".")[0]
        if flat.get(path, MISSING) is None:
            return None
    return value


def spread(path: str, value: Any) -> Flat:
    """What setting `path` to `value` means in flat paths."""
    if isinstance(value, Mapping):
        return {key: item for name, below in value.items() for key, item in spread(f"{path}.{name}", below).items()}
    if isinstance(value, str) and path in NAME_KEYS:
        return {f"{path}.{NAME_KEYS[path]}": value}
    return {path: value}


def values_of(entry: Located) -> list[Any]:
    """The values an entry of a rule names: those of its list, or itself."""
    plain = entry.plain()
    return plain if isinstance(plain, list) else [plain]


def show_plain(value: Any) -> str:
    """A value the way YAML would show it in one line."""
    if isinstance(value, list):
        return "[" + ", ".join(map(show_plain, value)) + "]"
    return value if isinstance(value, str) else show(value)


def flatten_located(node: Located, owner: str, prefix: str = "") -> dict[str, Located]:
    """The leaves of a nested or dotted mapping by dotted condition path.

    Raises:
        SpaceError: not a mapping, a path given twice, or no path of a condition.
    """
    flat: dict[str, Located] = {}
    for key, value in node.mapping(owner).items():
        path = f"{prefix}{key}"
        check_path(path, value)
        if isinstance(value.content, dict) and value.content:
            below = flatten_located(value, owner, f"{path}.")
        elif isinstance(value.content, dict):
            continue
        else:
            below = {canonical(path, value): value}
        for name, leaf in below.items():
            if name in flat:
                raise leaf.error(f"is given twice (first on line {flat[name].key.line})", name, at_key=True)
            flat[name] = leaf
    return flat


def canonical(path: str, value: Located) -> str:
    """`model: resnet8` means `model.name: resnet8`."""
    if path in NAME_KEYS and any(isinstance(item, str) for item in values_of(value)):
        return f"{path}.{NAME_KEYS[path]}"
    return path


def check_path(path: str, node: Located) -> None:
    """Raises `SpaceError` unless `path` begins with a section of a condition."""
    head, *rest = path.split(".")
    if head not in Condition.model_fields:
        hint = nearest(head, Condition.model_fields)
        raise node.error(f"there is no section {head!r} in a condition; {hint}", path, at_key=True)
    if "" in rest:
        raise node.error("is not a path: a part of it is empty", path, at_key=True)


def check_keys(node: Located, known: Iterable[str], owner: str) -> dict[str, Located]:
    """The content of a mapping that may only have the `known` keys."""
    known = tuple(known)
    content = node.mapping(owner)
    for key, value in content.items():
        if key not in known:
            path = f"{owner}.{key}" if owner else key
            raise value.error(f"unknown key '{key}'; {nearest(key, known, limit=20)}", path, at_key=True)
    return content


def parse_section(node: Located, cls: type[S], owner: str) -> S:
    """A pydantic section from YAML.

    Raises:
        SpaceError: points to the line of the offending key or value.
    """
    check_keys(node, cls.model_fields, owner)
    try:
        return cls.model_validate(node.plain())
    except ValidationError as error:
        path, problem = explain(error, cls, owner)
        inner = path.split(".")[0]
        raise node.content.get(inner, node).error(problem, f"{owner}.{inner}") from None


def parse_rule(node: Located, owner: str) -> Rule:
    """A partial match such as `{trigger.name: patch, poison.rate: [0.01, 0.1]}`."""
    entries = flatten_located(node, owner)
    if not entries:
        raise node.error("is empty: it would match everything", owner)
    for path, entry in entries.items():
        if entry.content == []:
            raise entry.error("the list is empty: nothing could match", f"{owner}.{path}")
    return Rule(entries, node.where)


def parse_rules(node: Located | None, owner: str) -> tuple[Rule, ...]:
    """A list of partial matches."""
    items = node.sequence(owner) if node is not None and node.content is not None else []
    return tuple(parse_rule(item, f"{owner}[{index}]") for index, item in enumerate(items))


def parse_parameters(node: Located, prefix: str = "") -> dict[str, Parameter]:
    """Every axis by path; paths are dotted, nested, or both."""
    parameters: dict[str, Parameter] = {}
    for key, value in node.mapping("parameters").items():
        path = f"{prefix}{key}"
        check_path(path, value)
        content = value.content
        if isinstance(content, dict) and content and not _is_leaf(content):
            below = parse_parameters(value, f"{path}.")
        else:
            parameter = parse_parameter(path, value)
            below = {parameter.path: parameter}
        for name, parameter in below.items():
            if name in parameters:
                raise parameter.error(f"is given twice (first on line {parameters[name].key.line})")
            parameters[name] = parameter
    return parameters


def _is_leaf(content: Mapping[str, Located]) -> bool:
    # An option may be called `min`, so a mapping that holds mappings under such a name is a nested path.
    return any(key in content and not (isinstance(content[key].content, dict) and key != "when") for key in LEAF_KEYS)


def parse_parameter(path: str, node: Located) -> Parameter:
    """One axis: `{value}`, `{values}` or `{min, max, distribution, q}`, each with `when` where it is not everywhere."""
    if path.partition(".")[0] == "seed":
        raise node.error("seeds are not a parameter: list them under `seeds`", path, at_key=True)
    if not isinstance(node.content, dict):
        example = "{values: [...]}" if isinstance(node.content, list) else f"{{value: {show_plain(node.plain())}}}"
        raise node.error(f"must be a mapping such as {example}, got {show(node.plain())}", path)
    content = check_keys(node, LEAF_KEYS, path)
    when = parse_rule(content["when"], f"{path}.when") if "when" in content else None
    given = [key for key in ("value", "values", "min", "max", "distribution", "q") if key in content]
    distribution: Distribution | None = None
    values: tuple[Located, ...] = ()
    if given == ["value"]:
        values = (content["value"],)
    elif given == ["values"]:
        values = tuple(content["values"].sequence(f"{path}.values"))
        if not values:
            raise content["values"].error("the list is empty: the grid would be", f"{path}.values")
    elif given and not {"value", "values"} & set(given):
        distribution = _parse_distribution(path, node, content)
    else:
        problem = f"cannot have {' and '.join(given)} together" if given else "says nothing"
        raise node.error(f"{problem}: give value, values, or min and max", path)
    if path in NAME_KEYS and values and all(isinstance(value.content, str) for value in values):
        path = f"{path}.{NAME_KEYS[path]}"
    return Parameter(path, values, distribution, when, node.key)


def _parse_distribution(path: str, node: Located, content: Mapping[str, Located]) -> Distribution:
    numbers: dict[str, float] = {}
    for key in ("min", "max", "q"):
        if key not in content:
            continue
        value = content[key].content
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
            raise content[key].error(f"must be a number, got {show(content[key].plain())}", f"{path}.{key}")
        numbers[key] = value
    for key in ("min", "max"):
        if key not in numbers:
            raise node.error(f"a distribution needs min and max; {key} is missing", path)
    whole = all(isinstance(numbers[key], int) for key in ("min", "max"))
    kinds = get_args(Kind)
    kind: Any = content["distribution"].plain() if "distribution" in content else kinds[2 if whole else 0]
    if kind not in kinds:
        hint = nearest(str(kind), kinds)
        raise content["distribution"].error(f"there is no distribution {show(kind)}; {hint}", f"{path}.distribution")
    checks: tuple[tuple[bool, str, str], ...] = (
        (numbers["min"] < numbers["max"], "max", "must be greater than min"),
        (kind != "log_uniform" or numbers["min"] > 0, "min", "must be greater than 0 for log_uniform"),
        (kind != "int_uniform" or whole, "min", "int_uniform needs whole numbers for min and max"),
        (numbers.get("q", 1) > 0, "q", "must be greater than 0"),
        ("q" not in numbers or kind != "int_uniform", "q", "int_uniform takes no q"),
    )
    for holds, key, problem in checks:
        if not holds:
            raise content[key].error(f"{problem} (got {show(content[key].plain())})", f"{path}.{key}")
    return Distribution(kind, numbers["min"], numbers["max"], numbers.get("q"))


def parse_zip(node: Located | None, parameters: Mapping[str, Parameter]) -> tuple[tuple[str, ...], ...]:
    """Groups of parameters that advance together."""
    groups: list[tuple[str, ...]] = []
    seen: set[str] = set()
    for index, item in enumerate(node.sequence("zip") if node is not None and node.content is not None else []):
        owner, group = f"zip[{index}]", []
        for member in item.sequence(owner):
            path = member.content
            if not isinstance(path, str):
                raise member.error(f"must be a parameter's path, got {show(member.plain())}", owner)
            path = path if path in parameters or path not in NAME_KEYS else f"{path}.{NAME_KEYS[path]}"
            if path not in parameters:
                raise member.error(f"there is no parameter {path!r}; {nearest(path, parameters)}", owner)
            if path in seen:
                raise member.error(f"{path!r} is zipped twice", owner)
            if parameters[path].distribution is not None:
                raise member.error(f"{path!r} is a distribution: only lists can advance together", owner)
            seen.add(path)
            group.append(path)
        if len(group) < 2:
            raise item.error("needs at least two parameters", owner)
        lengths = {path: len(parameters[path].values) for path in group}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{path} has {length}" for path, length in lengths.items())
            raise item.error(f"parameters that advance together need equally many values: {counts}", owner)
        groups.append(tuple(group))
    return tuple(groups)


def parse_seeds(node: Located | None) -> tuple[int, ...]:
    """Distinct whole numbers from 0."""
    if node is None:
        return (0,)
    seeds: list[int] = []
    for item in node.sequence("seeds"):
        seed = item.content
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise item.error(f"seeds are whole numbers from 0, got {show(item.plain())}", "seeds")
        if seed in seeds:
            raise item.error(f"{seed} is listed twice", "seeds")
        seeds.append(seed)
    if not seeds:
        raise node.error("the list is empty: the grid would be", "seeds")
    return tuple(seeds)


STAGE_CACHE_GB = 20.0
"""Default of `resources.stage_cache_gb` (our choice)."""


@dataclass(frozen=True)
class ResourceRules:
    """What trials ask Ray for: a default, and overrides of which later ones win."""

    default: Needs = Needs(cpu=1.0, gpu="auto")  # noqa: RUF009 - frozen
    overrides: tuple[tuple[Rule, Needs], ...] = ()
    stage_cache_gb: float | None = STAGE_CACHE_GB
    """Gigabytes (10^9 bytes) that finished poison stages may take in the sweep's folder; None: no limit."""

    def resolve(self, flat: Mapping[str, Any]) -> Resources:
        """What the condition with this flat content asks for, fractions of a GPU rounded up to 1/n."""
        cpu, gpu = self.default.cpu or 1.0, self.default.gpu if self.default.gpu is not None else "auto"
        for rule, needs in self.overrides:
            if rule.matches(flat):
                cpu = needs.cpu if needs.cpu is not None else cpu
                gpu = needs.gpu if needs.gpu is not None else gpu
        return Resources(cpu, gpu if gpu == "auto" else round_gpu(gpu))

    def notes(self) -> list[str]:
        """One line for each fraction of a GPU that is rounded."""
        asked = {needs.gpu for needs in (self.default, *(needs for _, needs in self.overrides))}
        numbers = sorted(gpu for gpu in asked if isinstance(gpu, float))
        return [
            f"gpu {gpu:g} is rounded up to {show_gpu(round_gpu(gpu))}: other fractions leave GPUs partly unused"
            for gpu in numbers
            if not math.isclose(gpu, round_gpu(gpu), rel_tol=1e-6)
        ]

    def plain(self) -> dict[str, Any]:
        content = {**self.default.model_dump(), "stage_cache_gb": self.stage_cache_gb}
        if self.overrides:
            content["overrides"] = [
                {"when": rule.plain(), **needs.model_dump(exclude_none=True)} for rule, needs in self.overrides
            ]
        return content


def parse_resources(node: Located | None) -> ResourceRules:
    """`cpu`, `gpu`, `overrides` and `stage_cache_gb`."""
    if node is None or node.content is None:
        return ResourceRules()
    content = check_keys(node, ("cpu", "gpu", "overrides", "stage_cache_gb"), "resources")
    given = _parse_needs(node, "resources")
    default = Needs(cpu=given.cpu or 1.0, gpu=given.gpu if given.gpu is not None else "auto")
    overrides = []
    listed = content.get("overrides")
    for index, item in enumerate(listed.sequence("resources.overrides") if listed and listed.content else []):
        owner = f"resources.overrides[{index}]"
        entry = check_keys(item, ("when", "cpu", "gpu"), owner)
        if "when" not in entry:
            raise item.error("needs a `when`", owner)
        needs = _parse_needs(item, owner)
        if needs == Needs():
            raise item.error("gives neither cpu nor gpu", owner)
        overrides.append((parse_rule(entry["when"], f"{owner}.when"), needs))
    return ResourceRules(default, tuple(overrides), _parse_stage_cache(content.get("stage_cache_gb")))


def _parse_stage_cache(node: Located | None) -> float | None:
    if node is None or node.content is None:
        return None if node else STAGE_CACHE_GB
    limit = node.content
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit <= 1e9:
        problem = f"must be a number of gigabytes above 0, or null for no limit, got {show(node.plain())}"
        raise node.error(problem, "resources.stage_cache_gb")
    return float(limit)


def _parse_needs(node: Located, owner: str) -> Needs:
    entries = {key: value for key, value in node.content.items() if key in Needs.model_fields}
    return parse_section(Located(entries, node.where, node.key), Needs, owner)
