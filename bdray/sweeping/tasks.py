"""From conditions to tasks: their order and their share of the cluster."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bdray.cluster.job import Task
from bdray.condition import Condition
from bdray.questions import answer_key
from bdray.space import SearchSpace
from bdray.store.file_names import answer_name
from bdray.store.labels import name_of
from bdray.sweeping.workload import Kind, kind_of, training_of
from bdray.trial.measurements import TrainingKey
from bdray.trial.surrogate import surrogate_of


def make_tasks(
    conditions: Sequence[Condition],
    space: SearchSpace,
    *,
    gpus: float,
    shares: Mapping[str, float] | None = None,
    largest: Callable[[float], float] = lambda gpu: 0.0,
) -> list[Task]:
    """Tasks in the order they should start: one of each kind of training, so that soon there is an honest time left and
    what cannot work is known; then stages that many conditions wait for.

    Args:
        gpus: GPUs of the cluster; without any, `gpu: auto` is 0.
        largest: CPUs of the largest node that has so much of GPUs, 0 where none is known: no more are asked for than it
            has, where the number is bdray's own choice, made on another machine perhaps. The threads remain, and so do
            the bits.
        shares: condition id -> what `gpu: auto` comes to (`bdray.trial.measurements.Packing`); 1 where it is not said.
    """
    shares = shares or {}
    sharers = Counter(stage for condition in conditions for stage in stages_of(condition))
    sharing = sorted(conditions, key=lambda condition: -sharers[condition.poison_fingerprint])
    answers = _answers_of([each for each in conditions if sharers[each.poison_fingerprint] > 1], space)
    first = dict.fromkeys(_first_of_each_kind(sharing))
    ordered = [*first, *(condition for condition in sharing if condition not in first)]
    return [
        replace(
            _task(condition, space, shares.get(condition.condition_id, 1.0) if gpus else 0.0, largest),
            answers=answers.get(condition.condition_id, ()),
        )
        for condition in ordered
    ]


def _answers_of(conditions: Sequence[Condition], space: SearchSpace) -> dict[str, tuple[str, ...]]:
    """What is asked of poisoned models that several conditions share, by condition id."""
    detect = space.questions.detectors_of("poisoned")
    known: dict[tuple[Any, ...], tuple[str, ...]] = {}
    found = {}
    for condition in conditions if detect else ():
        # Keys are digests of much; conditions whose components are the same objects have the same attack.
        parts = (
            condition.poison_fingerprint,
            id(condition.poison),
            id(condition.trigger),
            repr(condition.clean_identity),
        )
        if parts not in known:
            keys = (answer_key(detector, condition) for detector in detect)
            known[parts] = tuple(answer_name(condition.poison_fingerprint, key) for key in keys)
        found[condition.condition_id] = known[parts]
    return found


def _first_of_each_kind(conditions: Sequence[Condition]) -> Iterable[Condition]:
    firsts: dict[Kind, Condition] = {}
    for condition in conditions:
        firsts.setdefault(training_of(kind_of(condition)), condition)
    return firsts.values()


def stages_of(condition: Condition) -> tuple[str, ...]:
    """Fingerprints of the kept stages a condition needs, in the order it needs them."""
    surrogate = surrogate_of(condition)
    return (*((surrogate.stage.fingerprint,) if surrogate else ()), *condition.shared_fingerprints)


def _task(condition: Condition, space: SearchSpace, auto: float, largest: Callable[[float], float]) -> Task:
    share = space.resources_for(condition)
    cpu = 1.0 if share.cpu == "auto" else share.cpu
    gpu = auto if share.gpu == "auto" else float(share.gpu)
    return Task(
        condition_id=condition.condition_id,
        content=json.dumps(condition.content()),
        stages=stages_of(condition),
        cpu=min(cpu, largest(gpu) or cpu) if cpu == space.resources.decided.cpu else cpu,
        gpu=gpu,
        threads=max(1, int(cpu)),
        kind=str(TrainingKey.of(condition)) if gpu else "",
        label=name_of(condition, condition.condition_id, space.varied),
    )
