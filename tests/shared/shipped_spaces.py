"""The search spaces that come with bdray, each read once: the largest take seconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bdray.space import SearchSpace, load_space
from bdray.space.dry_run import Plan, make_plan

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


@cache
def shipped_space(name: str) -> SearchSpace:
    return load_space(SPACES[0].with_name(f"{name}.yaml"))


@cache
def plan_of(name: str) -> Plan:
    return make_plan(shipped_space(name))
