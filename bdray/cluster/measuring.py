"""What trials need of a GPU, measured in a process of its own: it ends with the measurement and holds no memory."""

from __future__ import annotations

import json
from collections.abc import Sequence

import ray

from bdray.cluster.job import ClusterJob
from bdray.cluster.trainable import set_up_worker
from bdray.condition import Condition
from bdray.trial.needs import Need


def measure_on(gpu_type: str, conditions: Sequence[Condition], job: ClusterJob) -> list[Need | None]:
    """Measure `conditions` one after the other on a whole GPU of this type; None where that was not possible.

    Args:
        job: what workers set themselves up with; its tasks are not needed.
    """
    measuring = ray.remote(num_gpus=1, resources={_resource(gpu_type): 0.001}, max_retries=0)(_measure)
    try:
        peaks = ray.get(measuring.remote(job, [json.dumps(condition.content()) for condition in conditions]))
    except ray.exceptions.RayError:
        # The process was lost. Whole GPUs are slow and safe; what is wrong shows in the trials.
        return [None] * len(conditions)
    return [Need.model_validate(peak) if peak else None for peak in peaks]


def gpu_types() -> list[str]:
    """The types of GPU in the cluster, as Ray names them; none where GPUs are only logical."""
    prefix = _resource("")
    return sorted(name.removeprefix(prefix) for name in ray.cluster_resources() if name.startswith(prefix))


def _resource(gpu_type: str) -> str:
    return f"accelerator_type:{gpu_type}"


def _measure(job: ClusterJob, contents: Sequence[str]) -> list[dict[str, int] | None]:
    """In the worker."""
    set_up_worker(job)
    from bdray.training.device import pick_device
    from bdray.trial.needs import measure_peak

    peaks: list[dict[str, int] | None] = []
    for content in contents:
        try:
            need = measure_peak(Condition.parse(json.loads(content)), pick_device())
        except Exception:
            # Whatever is wrong with a condition, its own trial will record it.
            need = None
        peaks.append(need.model_dump() if need else None)
    return peaks
