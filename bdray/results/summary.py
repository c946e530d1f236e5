"""The results of a sweep in a few named numbers: by trigger and by cell, as MLflow's parent run has them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from bdray.record import StageName, Status, TrialRecord
from bdray.results.cells import Cell, RateName, cells_of
from bdray.results.controls import controls_of
from bdray.results.varied import axes_of
from bdray.values import show_cell

_MOST_CELLS = 500
"""Of more cells, only the table has the numbers."""

GROUPED = ("by_trigger/", "by_cell/")
"""What the names of metrics begin with that are means over trainings."""

_LONGEST = 120
_UNNAMED = re.compile(r"[^\w. /-]+")


def summary_metrics(records: Sequence[TrialRecord], planned: int) -> dict[str, float]:
    """Counts, and of each trigger and cell the means after the last epoch of the poison stage (`poisoned_*`) and of the
    repair (`repaired_*`) over the trainings that count, how many trainings there were (`poisoned_trainings`: a model
    that several conditions share once; what is not repaired is no `repaired_trainings`) and in how many of them the
    backdoor took.

    `by_trigger/patch/poisoned_attack_success_rate`, `by_cell/patch-0.05-resnet8/repaired_took`,
    `conditions/finished`. Each with the columns' names of `results.csv`.
    """
    statuses = Counter(record.status for record in records)
    metrics = {f"conditions/{status}": float(statuses[status]) for status in get_args(Status)}
    metrics["conditions/planned"] = float(planned)
    poisoned, baselines = ([each for each in records if each.role == role] for role in ("poisoned", "baseline"))
    for group in cells_of(poisoned, ["trigger.name"], by_axes=True, controls=controls_of(records)):
        metrics |= _numbers(f"by_trigger/{_plain(str(group.values['trigger.name']))}", group)
    # One group, whatever trigger those have that were asked for at rate 0.
    for group in cells_of(baselines, [], by_axes=True):
        metrics |= _numbers("by_trigger/baseline", group)
    cells = cells_of(records, axes_of(records)) if records else []
    if len(cells) <= _MOST_CELLS:
        names = Counter(map(_cell_name, cells))
        for cell in cells:
            # Cells that differ in no axis (another trigger's parameter) keep apart by their ids.
            name = _cell_name(cell)
            metrics |= _numbers(f"by_cell/{name}" + (f"-{cell.cell_id[:6]}" if names[name] > 1 else ""), cell)
    return metrics


def _cell_name(cell: Cell) -> str:
    kept = [path for path in cell.values if not (cell.is_baseline and path.startswith(("trigger.", "poison.")))]
    words = [*(["baseline"] if cell.is_baseline else []), *(show_cell(cell.values[path]) for path in kept)]
    return _plain("-".join(words))[:_LONGEST]


def _plain(text: str) -> str:
    """What MLflow takes for the name of a metric, without the slash, which groups."""
    return _UNNAMED.sub("_", text).replace("/", "_")


_STAGES: tuple[tuple[str, StageName], ...] = (("poisoned", "poison"), ("repaired", "finetune"))


def _numbers(prefix: str, cell: Cell) -> dict[str, float]:
    found: dict[str, float | None] = {}
    for side, stage in _STAGES:
        means = {rate: cell.estimate(stage, rate) for rate in get_args(RateName)}
        trainings = cell.took(stage)
        found |= {f"{side}_{rate}": mean.mean if mean else None for rate, mean in means.items()}
        found[f"{side}_took"] = float(trainings.did) if trainings else None
        if trainings or any(means.values()):
            found[f"{side}_trainings"] = float(len(cell.trained(stage)))
    return {f"{prefix}/{name}": value for name, value in found.items() if value is not None}
