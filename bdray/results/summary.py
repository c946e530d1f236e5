"""The results of a sweep in a few named numbers: means by trigger and by cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TypeVar, get_args

from bdray.condition import flatten
from bdray.record import RATES, Rates, Status, TrialRecord
from bdray.results.tables import axes_of
from bdray.values import show_cell

K = TypeVar("K")
V = TypeVar("V")

_MOST_CELLS = 500
"""Of more cells, only the table has the numbers."""

_LONGEST = 120
_UNNAMED = re.compile(r"[^\w. /-]+")


def summary_metrics(records: Sequence[TrialRecord], planned: int) -> dict[str, float]:
    """Counts, and means after the last epoch of the poison stage (`poisoned_*`) and of the repair (`repaired_*`), over
    all conditions that have them, collapsed ones included as in every table.

    `by_trigger/patch/poisoned_attack_success_rate`, `by_cell/patch-0.05-resnet8/repaired_clean_accuracy`,
    `conditions/finished`. Each with the columns' names of `results.csv`.
    """
    statuses = Counter(record.status for record in records)
    metrics = {f"conditions/{status}": float(statuses[status]) for status in get_args(Status)}
    metrics["conditions/planned"] = float(planned)
    for trigger, members in _grouped((_trigger(record), record) for record in records).items():
        metrics |= _means(f"by_trigger/{trigger}", members)
    cells = _grouped((record.cell_id, record) for record in records)
    if records and len(cells) <= _MOST_CELLS:
        axes = axes_of(records)
        named = _grouped((_cell_name(members[0], axes), members) for members in cells.values())
        for name, same in named.items():
            for members in same:
                # Cells that differ in no axis (another trigger's parameter) keep apart by their ids.
                label = name if len(same) == 1 else f"{name}-{members[0].cell_id[:6]}"
                metrics |= _means(f"by_cell/{label}", members)
    return metrics


def _grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _trigger(record: TrialRecord) -> str:
    trigger = None if record.role == "baseline" else record.condition.get("trigger")
    return _plain(str(trigger["name"])) if trigger else "baseline"


def _cell_name(record: TrialRecord, axes: Sequence[str]) -> str:
    flat = flatten(record.condition)
    is_baseline = record.role == "baseline"
    kept = [path for path in axes if not (is_baseline and path.startswith(("trigger.", "poison.")))]
    words = [*(["baseline"] if is_baseline else []), *(show_cell(flat.get(path)) for path in kept)]
    return _plain("-".join(words))[:_LONGEST]


def _plain(text: str) -> str:
    """What MLflow takes for the name of a metric, without the slash, which groups."""
    return _UNNAMED.sub("_", text).replace("/", "_")


def _means(prefix: str, members: Sequence[TrialRecord]) -> dict[str, float]:
    sides: dict[str, list[Rates | None]] = {
        "poisoned": [record.poisoned for record in members],
        "repaired": [record.repaired for record in members],
    }
    means = {}
    for side, found in sides.items():
        for rate in RATES:
            values = [value for rates in found if rates and (value := getattr(rates, rate)) is not None]
            if values:
                means[f"{prefix}/{side}_{rate}"] = fmean(values)
    return means
