"""A rehearsal: every axis value of a space, trained and fine-tuned for a few batches before GPU-hours are spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bdray.condition import Condition
from bdray.data.base import DATASETS, DataSet
from bdray.errors import ComponentError, ConditionError
from bdray.machine import Machine
from bdray.progress import Bar
from bdray.record import TrialRecord
from bdray.results.varied import axes_of, axis_columns, axis_name
from bdray.space import SearchSpace
from bdray.space.expansion import pairwise_subset
from bdray.store.storage import Storage
from bdray.sweeping.cost import REHEARSALS, cost_lines, estimate_cost, untimed_kinds
from bdray.sweeping.deciding import decide_cpu, unmeasured_lines, where_trials_run, with_decided
from bdray.sweeping.run_sweep import run_conditions
from bdray.sweeping.settings import SweepOutcome, SweepSettings
from bdray.terminal import Console
from bdray.trial.measurements import Answer, Measurements, TrainingKind, training_set_size
from bdray.values import show_cell, show_rate

if TYPE_CHECKING:
    from bdray.cluster import ClusterJob, ClusterRun

_AT_ONCE = 8
"""Kinds of training that one process times."""

_UNTIMED = "it could not be timed at its real size"

BATCHES = 2
"""Batches an epoch."""

IMAGE_SIZE, TRAIN_IMAGES, TEST_IMAGES, BATCH_SIZE = 32, 400, 40, 8
"""What a rehearsal makes small: the real models and losses, few and small images. It makes nothing larger."""

_PER_CLASS = 4
"""Images at least: a strategy that poisons one class finds some."""


def rehearse(space: SearchSpace, settings: SweepSettings, console: Console) -> int:
    """Run a pairwise-covering subset of the space's conditions, a few batches each; return the exit status.

    Its records lie apart (`<storage>/rehearsals/<name>`): nothing of it is ever taken for a result.
    """
    planned, small = len(space.shown()), map(rehearsal_of, chosen_of(space))
    rehearsed = list({condition.condition_id: condition for condition in small}.values())
    of = f"{planned} conditions that the search might ask for" if space.expansion.examples else f"{planned} conditions"
    console.print(f"rehearsal of {len(rehearsed)} of {of}, {BATCHES} batches an epoch", highlight=False)
    settings = apart(space, settings)
    sweep, unmeasured = Storage.open(settings.storage).child(str(settings.name)), list[Text]()
    storage = sweep.parent.parent
    if unknown := untimed_kinds(space.shown(), storage):

        def measure(cluster: ClusterRun, job: ClusterJob) -> None:
            unmeasured.extend(measure_costs(space, unknown, Measurements(storage), cluster, job, console=console))

        settings = replace(settings, afterwards=measure)
    outcome = run_conditions(space, rehearsed, settings, console)
    console.print(cost_table(outcome))
    cost = estimate_cost(space, storage, sweep.name)
    priced = cost_lines(cost, space.resources.stage_cache_gb) if cost else []
    if priced and outcome.unsuccessful:
        priced.append(Text.assemble(("note:", "yellow"), " what failed here is counted as if it trained to its end"))
    asked = "finished, and lost its process while more was asked of it"
    unasked = [f"  {condition_id}  {asked}: {cause}" for condition_id, cause in outcome.unasked.items()]
    for line in (*map(Text, (*outcome.causes(), *unasked)), *unmeasured, *priced):
        console.print(line, soft_wrap=True)
    return 130 if outcome.interrupted else int(bool(unmeasured) or not outcome.is_whole)


def apart(space: SearchSpace, settings: SweepSettings) -> SweepSettings:
    """The settings of a sweep for its rehearsal, in a storage of its own within the sweep's."""
    return replace(
        settings,
        storage=Storage.open(settings.storage).child(REHEARSALS).location,
        name=settings.name or space.name,
        retry_failed=True,
        on_change="again",
        trial_options={**settings.trial_options, "max_batches": BATCHES, "keep_stages": False},
    )


def measure_costs(
    space: SearchSpace,
    kinds: Sequence[TrainingKind],
    kept: Measurements,
    cluster: ClusterRun,
    job: ClusterJob,
    *,
    console: Console,
) -> list[Text]:
    """Time a few steps of each kind of training at its real size. Returns which could not be timed, and why."""
    # Its share of the CPUs is the real sweep's.
    space = with_decided(space, decide_cpu(space, space.shown(), cluster, cluster.settings.max_concurrent))
    machines, threads = where_trials_run(space, [kind.example for kind in kinds], cluster)

    def measure(machine: Machine, asked: Sequence[TrainingKind]) -> Sequence[Answer]:
        return cluster.measure(machine, asked, threads, job)

    said, precision = list[Text](), job.trial_options.get("precision")
    with Bar(console) as bar:
        for start in range(0, len(kinds), _AT_ONCE):
            line = f"timing kinds of training at their real size: {start} of {len(kinds)} done"
            bar.show("timing", start, len(kinds), line=line)
            some = [replace(kind, precision=precision) for kind in kinds[start : start + _AT_ONCE]]
            # A mixed cluster is timed where trials are meant to run: its GPUs come last in the list.
            answers = kept.complete(machines[-1], threads, some, measure)
            said += unmeasured_lines(_UNTIMED, "cost", some, answers)
    return said


def chosen_of(space: SearchSpace) -> list[Condition]:
    """A few conditions in which any two values that meet in one of the space's still meet; of a number that is drawn,
    the smallest and the largest."""
    conditions, drawn = space.shown(), {axis.path for axis in space.parameters.values() if axis.distribution}
    kept: set[str] = set()
    for path in drawn:
        having = sorted((c for c in conditions if path in space.flat(c)), key=lambda c: space.flat(c)[path])
        kept |= {condition.condition_id for condition in (*having[:1], *having[-1:])}

    def named(condition: Condition) -> dict[str, Any]:
        return {path: value for path, value in space.flat(condition).items() if path not in drawn}

    conditions += space.twins(conditions) if space.expansion.examples else []
    return pairwise_subset(conditions, named, kept)


def rehearsal_of(condition: Condition) -> Condition:
    """The same condition, small.

    Whatever follows from the size of the pictures stays what it is at the real one, which is kept where no other will
    do: for a model that is built for one size, and for a trigger that does not fit.
    """
    real, stem = condition.data.image_size, {}
    size = min(real, IMAGE_SIZE) if condition.model.ANY_IMAGE_SIZE else real
    if condition.model.has_cifar_stem(size) != (resolved := condition.model.has_cifar_stem(real)):
        stem = {"stem": "cifar" if resolved else "standard"}
    content = condition.content()
    for recipe in (content["train"], content["finetune"]):
        recipe |= {"epochs": min(1, recipe["epochs"]), "batch_size": min(BATCH_SIZE, recipe["batch_size"])}
    try:
        return _checked({**content, "data": _fewer(condition, size), "model": content["model"] | stem})
    except (ComponentError, ConditionError):
        return _checked({**content, "data": _fewer(condition, real)})


def _checked(content: Mapping[str, Any]) -> Condition:
    condition = Condition.parse(content)
    for trigger in (condition.trigger, condition.test_trigger):
        if trigger:
            trigger.check(condition.data.image_size)
    return condition


def _fewer(condition: Condition, image_size: int) -> DataSet:
    """The condition's data set, with few images of this size, yet some of every class and of every fraction."""
    data, poison = condition.data, condition.poison
    classes = data.NUM_CLASSES or len(data.train_sizes() or ())
    clean = condition.asked_fraction
    shares = (poison.rate, poison.cover_rate, clean, clean * condition.clean.poisoned_share, data.clean_pool)
    fractions = [*filter(None, shares)]
    of = classes if poison.rate_of == "eligible" else 1
    enough, train_images = max(_PER_CLASS * classes, 2 * of / min(fractions, default=1.0)), TRAIN_IMAGES
    # In few steps: each number is an array of its own in the cache.
    while train_images < enough:
        train_images *= 4
    train_limit = min(train_images, data.train_limit or training_set_size(data))
    tested = max(TEST_IMAGES, _PER_CLASS * classes)
    return _resized(data, image_size, train_limit, min(tested, data.test_limit or tested))


@lru_cache(maxsize=256)
def _resized(data: DataSet, image_size: int, train_limit: int, test_limit: int) -> DataSet:
    """One object for what is equal: whatever looks through a folder of pictures looks once."""
    limits = {"train_limit": train_limit, "test_limit": test_limit}
    return DATASETS.build({**data.model_dump(), "image_size": image_size, **limits})


def cost_table(outcome: SweepOutcome) -> Table:
    """Time and memory of each rehearsed condition, the slowest first."""
    axes = axes_of(outcome.records)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True)
    for name in axis_columns([axis_name(path) for path in axes]):
        table.add_column(name, overflow="fold")
    for name in ("seconds", "images/s", "peak memory", ""):
        table.add_column(name, justify="right")
    for record in sorted(outcome.records, key=_seconds, reverse=True):
        flat = record.flat
        settings = axis_columns([show_cell(flat.get(path)) for path in axes])
        mark = "" if record.status == "finished" else record.status
        table.add_row(record.condition_id, *map(escape, settings), f"{_seconds(record):.1f}", *_cost(record), mark)
    return table


def _seconds(record: TrialRecord) -> float:
    return (record.finished_ms - record.started_ms) / 1000


def _cost(record: TrialRecord) -> tuple[str, str]:
    stage = record.stage("poison")
    if stage is None or stage.last is None:
        return "-", "-"
    return show_rate(stage.last.images_per_second), f"{stage.last.peak_memory_bytes / 2**30:.2f} GiB"
