"""What all conditions stand on, had before anything starts: pictures, and published weights."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bdray.condition import Condition
from bdray.data.base import DataSet
from bdray.data.clean import Clean
from bdray.errors import UserError
from bdray.models.base import Architecture
from bdray.values import show

_PATHS: dict[str, Callable[[Condition], Any]] = {
    "data.name": lambda condition: condition.data.name,
    "model.weights": lambda condition: condition.model.weights,
    "model.name": lambda condition: condition.model.name,
}
"""What `--only` may choose the rest by."""


_Pool = tuple[Clean, DataSet]


def prepare(conditions: Sequence[Condition]) -> None:
    """Finds and decodes every data set and asks for all published weights: what is wrong with one of them is wrong with
    all that need it.

    Only where the trials run on this machine; on a cluster, neither need be here.

    Raises:
        UserError: all that cannot be had, and the `--only` for what can run without it.
    """
    needed: dict[DataSet | Architecture, None] = {}
    for condition in conditions:
        needed |= {condition.data: None, condition.model: None}
    problems: dict[DataSet | Architecture | _Pool, UserError] = {}
    for part in needed:
        try:
            part.prepare()
        except UserError as error:
            problems[part] = error
    pools = [(one.clean, one.data) for one in conditions if one.clean.root is not None and one.data not in problems]
    for clean, data in dict.fromkeys(pools):
        try:
            clean.prepare(data)
        except UserError as error:
            problems[clean, data] = error
    if not problems:
        return
    rest, missing = list[Condition](), list[Condition]()
    for condition in conditions:
        parts = (condition.data, condition.model, (condition.clean, condition.data))
        lacks = any(part in problems for part in parts)
        (missing if lacks else rest).append(condition)
    errors = list({str(error): error for error in problems.values()}.values())
    advice = f"\nrun the rest with: {shlex.join(only)}" if (only := only_the_rest(rest, missing)) else ""
    if len(errors) == 1:
        raise type(errors[0])(f"{errors[0]}{advice}") from errors[0]
    raise UserError("\n".join([f"{len(errors)} things are missing:", *map(str, errors)]) + advice)


def only_the_rest(rest: Sequence[Condition], missing: Sequence[Condition]) -> list[str]:
    """The shortest `--only` that leaves some of `rest` and none that is `missing`; empty where there is none."""
    for paths in _choices():
        kept = {path: list(dict.fromkeys(map(_PATHS[path], rest))) for path in paths}
        if rest and not any(all(_PATHS[path](each) in kept[path] for path in paths) for each in missing):
            values = {path: show(kept[path] if len(kept[path]) > 1 else kept[path][0]) for path in paths}
            return [word for path, value in values.items() for word in ("--only", f"{path}={value}")]
    return []


def _choices() -> Iterator[tuple[str, ...]]:
    for size in range(1, len(_PATHS) + 1):
        yield from itertools.combinations(_PATHS, size)
