"""Where trials can run at all: what a node has, and what no node will ever have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bdray.cluster.job import Task
from bdray.errors import UserError
from bdray.gpu import show_gpu

_NEAR = 1e-6


_TYPE = "accelerator_type:"


def gpu_types_in(resources: Mapping[str, float]) -> list[str]:
    """The types of GPU among Ray's resources of a node or a cluster, as Ray names them; none where GPUs are logical."""
    return sorted(name.removeprefix(_TYPE) for name in resources if name.startswith(_TYPE))


def of_gpu_type(gpu_type: str) -> dict[str, float]:
    """What Ray is asked for beside a GPU, so that it is one of this type."""
    return {f"{_TYPE}{gpu_type}": 0.001}


class NodeResources(NamedTuple):
    """Logical resources of a node, all of them, in use or not."""

    cpu: float
    gpu: float = 0.0

    def holds(self, task: Task) -> bool:
        return task.cpu <= self.cpu + _NEAR and task.gpu <= self.gpu + _NEAR

    def __str__(self) -> str:
        return _shown(self.cpu, self.gpu)


def most_cpus(nodes: Sequence[NodeResources], gpu: float) -> float:
    """CPUs of the largest of those nodes that have so much of GPUs; 0 where none has."""
    return max((node.cpu for node in nodes if gpu <= node.gpu + _NEAR), default=0.0)


def require_runnable(tasks: Sequence[Task], nodes: Sequence[NodeResources]) -> None:
    """Raises when Ray would wait for ever.

    Args:
        nodes: of the nodes there are, and of those that an autoscaler may add.

    Raises:
        UserError: names the conditions that no node can ever run, what they ask for and what there is.
    """
    homeless = [task for task in tasks if not any(node.holds(task) for node in nodes)]
    if not homeless:
        return
    asked: dict[NodeResources, list[str]] = {}
    for task in homeless:
        asked.setdefault(NodeResources(task.cpu, task.gpu), []).append(task.condition_id)
    asks = "; ".join(f"{_named(ids)} for {share}" for share, ids in sorted(asked.items()))
    there = ", ".join(f"{count} x {node}" for node, count in sorted(Counter(nodes).items())) or "none with a CPU"
    raise UserError(
        f"no node can ever run {len(homeless)} of {len(tasks)} conditions; they ask: {asks}. The nodes: {there}."
        " Lower resources.cpu or resources.gpu of these conditions, or give the cluster a node that has as much"
    )


def _named(ids: Sequence[str]) -> str:
    others = len(ids) - 1
    return f"{ids[0]} and {others} more" if others else ids[0]


def _shown(cpu: float, gpu: float) -> str:
    cpus = f"{cpu:g} CPU{'s' if cpu != 1 else ''}"
    return f"{cpus} and {show_gpu(gpu)} GPU{'s' if gpu > 1 else ''}" if gpu else cpus
