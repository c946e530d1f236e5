"""The axes of a sweep: along what its conditions differ, and what their columns are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bdray.condition import flatten
from bdray.record import TrialRecord

WIDE_AXES = 3
"""More axes than this share one column: a terminal is not wide enough for more."""


FILES = ("trigger.path", "poison.test_trigger.path")
"""Where triggers' files lie, which is not what they are."""

_NO_AXES = ("seed", "data.classes")
"""Replicates; and what is known of pictures, which their digest tells apart."""


def varying_paths(records: Sequence[TrialRecord]) -> list[str]:
    """The axes: condition paths (but for the seed) with several values among the conditions that have them, in the
    order they stand. Baselines do not count: what they lack is no axis."""
    seen = values_by_path(_poisoned(records))
    return [path for path, values in seen.items() if path not in _NO_AXES and len(values) > 1]


def _poisoned(records: Sequence[TrialRecord]) -> Sequence[TrialRecord]:
    return [record for record in records if record.role == "poisoned"] or records


def values_by_path(records: Sequence[TrialRecord]) -> dict[str, set[str]]:
    """The values of every condition path, as `repr` has them; paths in the order they stand."""
    values: dict[str, set[str]] = {}
    sections: dict[tuple[str, int], Any] = {}
    for record in records:
        for name, section in record.condition.items():
            # Gathered records share their sections (`bdray.store.packing`), and each is looked at once.
            if (name, id(section)) not in sections:
                sections[name, id(section)] = section
                for path, value in flatten({name: section}).items():
                    values.setdefault(path, set()).add(repr(value))
    return values


def axes_of(records: Sequence[TrialRecord]) -> list[str]:
    """The varying paths without those that another one decides, such as a parameter that just one trigger has.

    A number that no two cells share, of those that have it, decides everything by accident and therefore nothing.
    """
    flats = [record.flat for record in {record.cell_id: record for record in _poisoned(records)}.values()]
    columns = {path: [repr(flat.get(path)) for flat in flats] for path in varying_paths(records)}
    for path in FILES:
        columns.pop(path, None)
    words = [path for path in columns if path.endswith((".name", ".strategy"))]
    kept: list[str] = []
    for path in [*words, *(path for path in columns if path not in words)]:
        deciders = [other for other in kept if other in words or _is_shared(columns[other])]
        if not any(_decides(columns[other], columns[path]) for other in deciders):
            kept.append(path)
    return [path for path in columns if path in kept] or ["trigger.name"]


def _is_shared(column: Sequence[str]) -> bool:
    present = [value for value in column if value != repr(None)]
    return len(set(present)) < len(present)


def _decides(this: Sequence[str], that: Sequence[str]) -> bool:
    return len(set(zip(this, that, strict=True))) == len(set(this))


def axis_name(path: str) -> str:
    """The last word of a path, but for `name`: `trigger.name` is "trigger"."""
    return path.removesuffix(".name").rpartition(".")[2]


def axis_columns(cells: Sequence[str]) -> list[str]:
    """A column an axis, or one for all where a terminal would be too narrow."""
    return list(cells) if len(cells) <= WIDE_AXES else [" / ".join(cells)]
