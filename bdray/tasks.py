"""From conditions to tasks: their order and their share of the cluster."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from bdray.cluster.job import Task
from bdray.condition import Condition
from bdray.space import SearchSpace


def make_tasks(conditions: Sequence[Condition], space: SearchSpace, *, gpus: float) -> list[Task]:
    """Tasks in the order they should start: stages that many conditions wait for come first.

    Args:
        gpus: GPUs of the cluster; without any, `gpu: auto` is 0.
    """
    sharers = Counter(stage for condition in conditions for stage in stages_of(condition))
    ordered = sorted(conditions, key=lambda condition: -sharers[condition.poison_fingerprint])
    return [_task(condition, space, gpus) for condition in ordered]


def stages_of(condition: Condition) -> tuple[str, ...]:
    """Fingerprints of the poison stages a condition needs, in the order it needs them."""
    needs_surrogate = condition.poison.needs_surrogate and not condition.is_baseline
    surrogate = (condition.baseline().poison_fingerprint,) if needs_surrogate else ()
    return (*surrogate, condition.poison_fingerprint)


def _task(condition: Condition, space: SearchSpace, gpus: float) -> Task:
    share = space.resources_for(condition)
    gpu = (1.0 if gpus else 0.0) if share.gpu == "auto" else float(share.gpu)
    return Task(
        condition_id=condition.condition_id,
        content=json.dumps(condition.content()),
        stages=stages_of(condition),
        cpu=share.cpu,
        gpu=gpu,
    )
