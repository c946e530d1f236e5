"""Which setting of a repair a defender would choose: by clean accuracy alone, on pictures that no stage trains on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean

from bdray.record import TrialRecord

_SHARED = ("repair.name", "finetune.fraction", "finetune.split")
"""What of the repair is no setting of it: which repair it is, and what it is given."""


def selected_cells(records: Sequence[TrialRecord]) -> dict[str, bool]:
    """By cell id, whether its setting is the best one of its repair of the same poisoned models; cells whose repair has
    no other setting with a validation accuracy are left out.

    The best has the highest mean of `TrialRecord.validation` over the seeds that all settings have; settings that are
    level are all the best. A collapsed model counts as it is: its accuracy says so.
    """
    found: dict[str, dict[int, float]] = {}
    groups: dict[str, list[str]] = {}
    for record in records:
        if record.validation is None or record.role == "baseline":
            continue
        if record.cell_id not in found:
            groups.setdefault(_group(record), []).append(record.cell_id)
        found.setdefault(record.cell_id, {})[record.condition["seed"]] = record.validation.clean_accuracy
    return {
        cell: chosen
        for cells in groups.values()
        if len(cells) > 1
        for cell, chosen in _chosen({cell: found[cell] for cell in cells}).items()
    }


def _group(record: TrialRecord) -> str:
    content = {
        path: value
        for path, value in record.flat.items()
        if path in _SHARED or (path != "seed" and not path.startswith(("finetune.", "repair.")))
    }
    return json.dumps(content, sort_keys=True, default=str)


def _chosen(settings: dict[str, dict[int, float]]) -> dict[str, bool]:
    seeds = set.intersection(*(set(by_seed) for by_seed in settings.values()))
    means = {cell: fmean(by_seed[seed] for seed in seeds) for cell, by_seed in settings.items()} if seeds else {}
    return {cell: mean == max(means.values()) for cell, mean in means.items()}
