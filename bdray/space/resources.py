"""What trials ask Ray for: a default, and overrides for some conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from bdray.gpu import round_gpu, show_gpu
from bdray.recipes import Resolved
from bdray.registry import Identified
from bdray.space.axes import Rule, check_keys, listed, parse_rule, parse_section
from bdray.space.source import Located, parse_yaml


class Resources(NamedTuple):
    """What one trial asks Ray for."""

    cpu: float | Literal["auto"]
    gpu: float | Literal["auto"]


class Needs(Identified):
    """`cpu` and `gpu` of a trial, where they are given."""

    cpu: float | Literal["auto"] | None = None
    """CPU cores of a trial, and so its threads; `auto`: the cores of a machine, shared among the trials that can run
    side by side."""
    gpu: float | Literal["auto"] | None = None
    """Share of a GPU, rounded up to 1/n; `auto`: measured once for each kind of trial and GPU."""

    @field_validator("cpu", "gpu", mode="before")
    @classmethod
    def _auto_or_number(cls, given: Any, info: ValidationInfo) -> Any:
        number = isinstance(given, (int, float)) and not isinstance(given, bool) and 0 <= given <= 1e6
        if not (given is None or given == "auto" or (number and (given or info.field_name == "gpu"))):
            raise ValueError(f"must be 'auto' or a number {'from' if info.field_name == 'gpu' else 'greater than'} 0")
        return given


class Defaults(Needs):
    """What every trial asks for, unless an override matches it, and what the sweep may keep."""

    cpu: float | Literal["auto"] = 1.0
    """CPU cores of a trial, and so its threads; `auto`: the cores of a machine, shared among the trials that can run
    side by side."""
    gpu: float | Literal["auto"] = "auto"
    """Share of a GPU, rounded up to 1/n; `auto`: measured once for each kind of trial and GPU."""
    stage_cache_gb: float | None = 20.0
    """Gigabytes (10^9 bytes) that models of finished poison stages may take in the sweep's folder (our choice); None:
    no limit."""

    keep_models: bool = False
    """Keep the model at the end of every repair too, for `bdray export model`; `stage_cache_gb` does not count it."""

    @field_validator("stage_cache_gb", mode="before")
    @classmethod
    def _limit(cls, limit: Any) -> Any:
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool) and 0 < limit <= 1e9
        if not (limit is None or number):
            raise ValueError("must be a number of gigabytes above 0, or null for no limit")
        return limit


class Override(Needs):
    """Other needs for the conditions that `when` matches; if several match, the last one wins."""

    when: dict[str, Any]
    """A partial match: `{path: value}` or `{path: [value, ...]}`."""


class Decided(Identified):
    """What a sweep decided once, by measurement: no part of any condition. Written by bdray; what is deleted is decided
    anew."""

    precision: Resolved | None = None
    """What `precision: auto` comes to."""
    cpu: int | None = Field(default=None, ge=1)
    """What `cpu: auto` comes to: CPUs a trial, and so its threads."""
    compile: tuple[str, ...] | None = Field(default=None, strict=False)
    """Kinds of training that `compile: auto` compiles (`bdray.trial.measurements.speed_key`)."""
    because: dict[str, str] = Field(default_factory=dict)
    """Why, by key."""

    @property
    def plain(self) -> dict[str, Any]:
        """For a file; empty where nothing is decided."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)

    def updated(self, newer: Decided) -> Decided:
        """These decisions, and those of `newer` in their place."""
        given = {name: value for name, value in newer if value is not None}
        return Decided(**{**dict(self), **given, "because": {**self.because, **newer.because}})


@dataclass(frozen=True)
class ResourceRules:
    """A default, and overrides of which later ones win; and what was decided of what they left open."""

    default: Defaults = Defaults()  # noqa: RUF009 - frozen
    overrides: tuple[tuple[Rule, Needs], ...] = ()
    decided: Decided = Decided()  # noqa: RUF009 - frozen

    @property
    def stage_cache_gb(self) -> float | None:
        return self.default.stage_cache_gb

    def resolve(self, flat: Mapping[str, Any]) -> Resources:
        """What the condition with this flat content asks for, as far as it is decided; fractions of a GPU rounded up to
        1/n."""
        cpu, gpu = self.default.cpu, self.default.gpu
        for rule, needs in self.overrides:
            if rule.matches(flat):
                cpu = needs.cpu if needs.cpu is not None else cpu
                gpu = needs.gpu if needs.gpu is not None else gpu
        if cpu == "auto" and self.decided.cpu is not None:
            cpu = float(self.decided.cpu)
        return Resources(cpu, gpu if gpu == "auto" else round_gpu(gpu))

    def notes(self) -> list[str]:
        """One line for each fraction of a GPU that is rounded."""
        asked = {needs.gpu for needs in (self.default, *(needs for _, needs in self.overrides))}
        return [
            f"gpu {gpu:g} is rounded up to {show_gpu(round_gpu(gpu))}: other fractions leave GPUs partly unused"
            for gpu in sorted(gpu for gpu in asked if isinstance(gpu, float))
            if not math.isclose(gpu, round_gpu(gpu), rel_tol=1e-6)
        ]

    def plain(self) -> dict[str, Any]:
        overrides = [{"when": rule.plain(), **needs.model_dump(exclude_none=True)} for rule, needs in self.overrides]
        decided = self.decided.plain
        return {**self.default.model_dump(), "overrides": overrides, **({"decided": decided} if decided else {})}


def parse_resources(node: Located | None) -> ResourceRules:
    """`cpu`, `gpu`, `stage_cache_gb`, `overrides` and `decided`."""
    if node is None or node.content is None:
        return ResourceRules()
    content = check_keys(node, (*Defaults.model_fields, "overrides", "decided"), "resources")
    overrides = []
    for index, item in enumerate(listed(content, "overrides", "resources.")):
        owner = f"resources.overrides[{index}]"
        entry = check_keys(item, tuple(Override.model_fields), owner)
        if "when" not in entry:
            raise item.error("needs a `when`", owner)
        needs = parse_section(item.without("when"), Needs, owner)
        if needs == Needs():
            raise item.error("gives neither cpu nor gpu", owner)
        overrides.append((parse_rule(entry["when"], f"{owner}.when"), needs))
    default = parse_section(node.without("overrides").without("decided"), Defaults, "resources")
    decided = parse_section(content.get("decided"), Decided, "resources.decided")
    return ResourceRules(default, tuple(overrides), decided)


def decided_in(text: str) -> Decided:
    """What the `space.yaml` of a sweep says was decided.

    Raises:
        SpaceError: it is no such file, or only its beginning.
    """
    content = parse_yaml(text, "space.yaml")
    if "plugins" not in content.mapping(""):
        raise content.error("its end is missing", "")
    return parse_resources(content.mapping("").get("resources")).decided
