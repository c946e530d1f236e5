"""A rehearsal: every axis value of a space, trained and fine-tuned for a few batches before GPU-hours are spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from bdray.condition import Condition, flatten
from bdray.record import TrialRecord
from bdray.results.tables import axes_of, axis_columns, axis_name
from bdray.space import SearchSpace
from bdray.space.expansion import pairwise_subset
from bdray.sweeping.driver import SweepOutcome, SweepSettings, run_conditions
from bdray.terminal import Console
from bdray.values import show_cell

REHEARSALS = "rehearsals"
"""Folder of a storage, itself a storage: what lies in it is never taken for a result."""

BATCHES = 2
"""Batches an epoch."""

SMALL: Mapping[str, Mapping[str, Any]] = {
    "data": {"train_limit": 400, "test_limit": 40, "image_size": 32},
    "train": {"epochs": 1, "batch_size": 8},
    "finetune": {"epochs": 1, "batch_size": 8},
}
"""What a rehearsal makes small: the real models and losses, few and small images."""


def rehearse(space: SearchSpace, settings: SweepSettings, console: Console) -> int:
    """Run a pairwise-covering subset of the space's conditions, a few batches each; return the exit status.

    Its records lie apart (`<storage>/rehearsals/<name>`): nothing of it is ever taken for a result.
    """
    subset = [rehearsal_of(condition) for condition in pairwise_subset(space.conditions())]
    unique = list({condition.condition_id: condition for condition in subset}.values())
    console.print(f"rehearsal of {len(unique)} of {len(space.conditions())} conditions, {BATCHES} batches an epoch")
    settings = replace(
        settings,
        storage=f"{settings.storage.rstrip('/')}/{REHEARSALS}",
        name=settings.name or space.name,
        retry_failed=True,
        trial_options={**settings.trial_options, "max_batches": BATCHES, "keep_stages": False},
    )
    outcome = run_conditions(space, unique, settings, console)
    console.print(cost_table(outcome))
    return 130 if outcome.interrupted else int(bool(outcome.unsuccessful or outcome.missing))


def rehearsal_of(condition: Condition) -> Condition:
    """The same condition, small."""
    content = condition.content()
    for section, changes in SMALL.items():
        content[section] = {**content[section], **changes}
    content["data"]["image_size"] = min(condition.data.image_size, content["data"]["image_size"])
    return Condition.parse(content)


def cost_table(outcome: SweepOutcome) -> Table:
    """Time and memory of each rehearsed condition, the slowest first."""
    axes = axes_of(outcome.records)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in axis_columns([axis_name(path) for path in axes]):
        table.add_column(name, overflow="fold")
    for name in ("seconds", "images/s", "peak memory", ""):
        table.add_column(name, justify="right")
    for record in sorted(outcome.records, key=_seconds, reverse=True):
        flat = flatten(record.condition)
        settings = axis_columns([show_cell(flat.get(path)) for path in axes])
        mark = "" if record.status == "finished" else record.status
        table.add_row(*map(escape, settings), f"{_seconds(record):.1f}", *_cost(record), mark)
    return table


def _seconds(record: TrialRecord) -> float:
    return (record.finished_ms - record.started_ms) / 1000


def _cost(record: TrialRecord) -> tuple[str, str]:
    stage = record.stage("poison")
    if stage is None or stage.last is None:
        return "-", "-"
    return f"{stage.last.images_per_second:.1f}", f"{stage.last.peak_memory_bytes / 2**30:.2f} GiB"
