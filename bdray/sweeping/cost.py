"""What a sweep will cost, before it is spent: from finished conditions, and from the steps that a rehearsal timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from bdray.condition import Condition
from bdray.record import TrialRecord
from bdray.space import SearchSpace
from bdray.store.records import read_records, with_answers
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.forecast import Capacity, Forecaster, beside_stages
from bdray.sweeping.tasks import make_tasks
from bdray.sweeping.workload import POISON, Kind, Work, training_of, work_of
from bdray.trial.measurements import Measurement, Measurements, TrainingKey, TrainingKind, kinds_of
from bdray.values import show_amount, show_duration

REHEARSALS = "rehearsals"
"""Folder of a storage, itself a storage: what lies in it is never taken for a result."""

SLOTS = (1, 4, 16)
_SLOWEST = 5


@dataclass(frozen=True)
class CostEstimate:
    """What is left of a sweep, or all of it.

    Attributes:
        wall_s: by number of slots, which are conditions at once.
        trial_s: of all conditions, one after the other.
        on_gpu: measured on a GPU, of which each condition has one to itself.
        stage_bytes: of the models that are kept for other conditions; None where no size is known.
        slowest: names of the slowest conditions, with their seconds.
        basis: what it rests on.
        timed, kinds: kinds of training that were timed, and all there are; the others are guessed from these.
        timed_conditions, conditions: those of such kinds, and all.
        asked: whose time it is: what is left to run, or examples of what a search may ask for.
    """

    wall_s: Mapping[int, float]
    trial_s: float
    on_gpu: bool
    stage_bytes: float | None
    slowest: Sequence[tuple[str, float]]
    basis: str
    timed: int
    kinds: int
    timed_conditions: int
    conditions: int
    asked: str = "what is left to run"


def timed_kinds(storage: Storage) -> dict[str, Measurement]:
    """What is known to cost how much, on whichever machine that was measured, by `speed_key`."""
    known = Measurements(storage).read().items()
    return {TrainingKey.parse(name.partition("@")[0]).speed_key: one for name, one in known if one.image_s}


def untimed_kinds(conditions: Sequence[Condition], storage: Storage) -> list[TrainingKind]:
    """The kinds of training of which that is not known."""
    known = timed_kinds(storage)
    return [kind for kind in kinds_of(conditions, lambda _: {"cost"}) if kind.key.speed_key not in known]


def estimate_cost(space: SearchSpace, storage: Storage, name: str) -> CostEstimate | None:
    """What is left to spend; None where nothing was timed.

    Args:
        storage: of all sweeps, in which this one or its rehearsal may lie.
        name: of the sweep.
    """
    conditions = space.shown()
    works = {condition.condition_id: work_of(condition) for condition in conditions}
    sweep, rehearsal = storage.child(name), storage.child(REHEARSALS).child(name)
    # What was just taken over lies there before the sweep does.
    there = _read(sweep) if SweepFolder(sweep).condition_ids() else []
    records = [record for record in there if record.status == "finished" and record.condition_id in works]
    costs = timed_kinds(storage)
    forecaster = Forecaster(works, Capacity(cpus=0.0), bool(space.questions.detectors_of("poisoned")))
    for record in records:
        forecaster.learn(record)
    used = {work.kind[2]: costs[work.kind[2]] for work in works.values() if work.kind[2] in costs}
    _learn_costs(forecaster, used, {work.kind[2]: work.kind for work in works.values()})
    if not forecaster.rates:
        return None
    if used:
        _learn_overheads(forecaster, _read(rehearsal) if SweepFolder(rehearsal).is_sweep else ())
    done = {record.condition_id for record in records}
    left = [condition for condition in conditions if condition.condition_id not in done]
    return _estimate(space, left, forecaster, used, len(records))


def _read(sweep: Storage) -> list[TrialRecord]:
    records = read_records(sweep)
    return with_answers(sweep, records) if SweepFolder(sweep).is_sweep else records


def _learn_costs(forecaster: Forecaster, costs: Mapping[str, Measurement], kinds: Mapping[str, Kind]) -> None:
    """The costs of kinds that no finished condition timed."""
    for key, cost in costs.items():
        kind = training_of(kinds[key])
        if cost.image_s and not forecaster.rates.knows(kind):
            area = (int(kind[1]) / 32) ** 2
            forecaster.rates.learn(key, kind, {POISON: (cost.image_s / area, 1.0)})


def _learn_overheads(forecaster: Forecaster, rehearsed: Sequence[TrialRecord]) -> None:
    """What a condition takes beside its stages, which is the same for small ones."""
    for record in rehearsed:
        if record.status == "finished":
            overhead, asking = beside_stages(record)
            forecaster.rates.learn(f"{REHEARSALS}/{record.condition_id}", (), {}, overhead=overhead, asking=asking)


def _estimate(
    space: SearchSpace,
    left: Sequence[Condition],
    forecaster: Forecaster,
    costs: Mapping[str, Measurement],
    finished: int,
) -> CostEstimate:
    tasks = make_tasks(left, space, gpus=0.0)
    spent = {}
    for slots in SLOTS:
        forecaster.capacity = Capacity(cpus=0.0, most=slots)
        spent[slots] = forecaster.spent(tasks)
    works = [forecaster.works[task.condition_id] for task in tasks]
    alone = [(task.label, forecaster.seconds_alone(work)) for task, work in zip(tasks, works, strict=True)]
    kinds = Counter(training_of(work.kind) for work in works)
    timed = {kind: count for kind, count in kinds.items() if forecaster.rates.knows(kind)}
    examples = len(space.expansion.examples)
    basis = [f"{finished} finished condition{'s' if finished > 1 else ''}"] if finished else []
    machines = dict.fromkeys(f"{cost.machine}, {_device(cost)}" for cost in costs.values())
    basis += [f"a rehearsal's timed steps on {' and '.join(machines)}"] if costs else []
    return CostEstimate(
        wall_s={slots: one.wall_s for slots, one in spent.items()},
        trial_s=spent[1].trial_s,
        on_gpu=any(cost.on_gpu for cost in costs.values()),
        stage_bytes=_stage_bytes(works, costs),
        slowest=sorted(alone, key=lambda one: -one[1])[:_SLOWEST],
        basis=" and ".join(basis),
        timed=len(timed),
        kinds=len(kinds),
        timed_conditions=sum(timed.values()),
        conditions=len(works),
        asked=f"{examples} conditions that the search might ask for" if examples else "what is left to run",
    )


def _device(cost: Measurement) -> str:
    return "one condition a GPU" if cost.on_gpu else f"{cost.threads} thread{'s' * (cost.threads > 1)} a condition"


def _stage_bytes(works: Sequence[Work], costs: Mapping[str, Measurement]) -> float | None:
    """Of all models that are kept; a kind without a size counts as much as the mean of the others."""
    if not costs:
        return None
    mean = sum(cost.model_bytes for cost in costs.values()) / len(costs)
    sizes: dict[str, float] = {}
    for work in works:
        cost = costs.get(work.kind[2])
        for stage in work.stages:
            if stage.shared:
                sizes[stage.fingerprint] = cost.model_bytes if cost else mean
    return sum(sizes.values())


def cost_lines(cost: CostEstimate, limit_gb: float | None) -> list[Text]:
    """The estimate in words. `limit_gb`: `resources.stage_cache_gb`."""
    if not cost.slowest:
        return [Text.assemble(("nothing is left to run", "bold"), f": {cost.basis}")]
    lines = [Text.assemble((f"{cost.asked} will take", "bold"), f", by {cost.basis}:")]
    for slots, seconds in cost.wall_s.items():
        at_once = "1 condition at a time" if slots == 1 else f"{slots} at a time"
        gpu = f", {show_amount(cost.trial_s / 3600)} GPU-hours at one condition a GPU" if cost.on_gpu else ""
        lines.append(Text(f"  {at_once:<22} {show_duration(seconds)}{gpu}"))
    if not cost.on_gpu:
        lines.append(Text(f"  {'in all':<22} {show_duration(cost.trial_s)} of trials, none on a GPU"))
    if cost.stage_bytes is not None:
        gigabytes = cost.stage_bytes / 1e9
        lines.append(Text(f"  {'storage':<22} {show_amount(gigabytes)} GB of models that conditions share"))
        if limit_gb is not None and gigabytes > limit_gb:
            lines.append(_evicted(gigabytes, limit_gb))
    lines += [Text(f"  {'the slowest' if not number else '':<22} {show_duration(seconds)}  {label}")
              for number, (label, seconds) in enumerate(cost.slowest)]  # fmt: skip
    covers = (
        f"{cost.timed} of {cost.kinds} kinds of training, {cost.timed_conditions:,} of {cost.conditions:,} conditions"
    )
    lines.append(Text(f"  {'timed':<22} {covers}"))
    if cost.timed < cost.kinds:
        lines.append(Text.assemble(("note:", "yellow"), " what was not timed is guessed from the others"))
    return lines


def forecast_of(cost: CostEstimate | None) -> dict[str, Any]:
    """Of an estimate what `sweep.json` keeps, in seconds; empty where no rehearsal had timed anything."""
    if cost is None or cost.stage_bytes is None or not cost.slowest:
        return {}
    return {"trial_s": cost.trial_s, "wall_s": {str(slots): seconds for slots, seconds in cost.wall_s.items()}}


def cost_line(info: SweepInfo, records: Sequence[TrialRecord]) -> str | None:
    """What a sweep cost, beside what its rehearsal had said at the number of conditions at once that is nearest; None
    of one that ran nothing. What was taken over from other sweeps ran before this one was made, and cost it nothing.

    Args:
        records: all there are, whatever command asked for them, since the sweep's time is that of all its commands.
    """
    own = [record for record in records if record.started_ms >= (info.created_ms or 0)]
    trial_s = sum(record.finished_ms - record.started_ms for record in own) / 1000
    if not info.ran_s or not own:
        return None
    said = f"took {show_duration(info.ran_s)}, its trials together {show_duration(trial_s)}"
    if not info.forecast:
        return said
    at_once = trial_s / info.ran_s
    slots = min(info.forecast["wall_s"], key=lambda slots: abs(int(slots) - at_once))
    wall = f"{show_duration(info.forecast['wall_s'][slots])} at {slots} at a time"
    return f"{said}; the rehearsal had said {wall}, together {show_duration(info.forecast['trial_s'])}"


def _evicted(gigabytes: float, limit_gb: float) -> Text:
    said = (
        f" resources.stage_cache_gb keeps {limit_gb:g} of {gigabytes:,.0f} GB: models that no condition of the run"
        " needs any more are forgotten, and computed again for another sweep that shares them"
    )
    return Text.assemble(("note:", "yellow"), said)
