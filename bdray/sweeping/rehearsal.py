"""A rehearsal: every axis value of a space, trained and fine-tuned for a few batches before GPU-hours are spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from bdray.condition import Condition, flatten
from bdray.progress import Bar
from bdray.record import TrialRecord
from bdray.results.axes import axes_of, axis_columns, axis_name
from bdray.space import SearchSpace
from bdray.space.expansion import pairwise_subset
from bdray.store.storage import Storage
from bdray.sweeping.cost import REHEARSALS, cost_lines, estimate_cost, examples_of
from bdray.sweeping.deciding import where_trials_run
from bdray.sweeping.driver import SweepOutcome, SweepSettings, run_conditions
from bdray.terminal import Console
from bdray.trial.costing import COSTS, Cost
from bdray.trial.measured import Measured
from bdray.values import show_cell

if TYPE_CHECKING:
    from bdray.cluster import ClusterJob, ClusterRun

_AT_ONCE = 8
"""Kinds of training that one process times."""

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
    rehearsed = Storage.open(settings.storage).child(settings.name or space.name)
    settings = replace(settings, afterwards=lambda cluster, job: measure_costs(space, cluster, job, rehearsed, console))
    outcome = run_conditions(space, unique, settings, console)
    console.print(cost_table(outcome))
    cost = estimate_cost(space, rehearsed.parent.parent, rehearsed.name)
    for line in cost_lines(cost, space.resources.stage_cache_gb) if cost else ():
        console.print(line, soft_wrap=True)
    return 130 if outcome.interrupted else int(bool(outcome.unsuccessful or outcome.missing))


def measure_costs(
    space: SearchSpace, cluster: ClusterRun, job: ClusterJob, rehearsed: Storage, console: Console
) -> None:
    """Time a few steps of each kind of training at its real size, as far as that is not known yet."""
    kept = Measured(rehearsed, COSTS, Cost)
    known = kept.read()
    examples = examples_of(space.shown())
    unknown = [(key, condition) for key, condition in examples.items() if key not in known]
    machines, threads = where_trials_run(space, list(examples.values()), cluster)
    if not unknown or not machines:
        return
    with Bar(console) as bar:
        for start in range(0, len(unknown), _AT_ONCE):
            line = f"timing kinds of training at their real size: {start} of {len(unknown)} done"
            bar.show("timing", start, len(unknown), line=line)
            some = dict(unknown[start : start + _AT_ONCE])
            # A mixed cluster is timed where trials are meant to run: its GPUs come last in the list.
            costs = cluster.costs(machines[-1], list(some.values()), threads, job)
            kept.add({key: cost for key, cost in zip(some, costs, strict=True) if cost is not None})


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
