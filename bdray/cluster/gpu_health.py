"""A trial's GPU inside its process: whether it works when the process starts, and whose fault an error on it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache

import ray

from bdray.cards import card_problems
from bdray.cluster.failures import ERROR, UNFIT
from bdray.cluster.job import ClusterJob, Task
from bdray.cluster.node_resources import gpu_types_in
from bdray.errors import BdrayError
from bdray.gpu_errors import gpu_error


class GpuLostError(BdrayError):
    """The process ends, its condition goes on elsewhere. `failures.gpu_failure` reads it out of what Ray says."""


@contextmanager
def on_its_gpu(job: ClusterJob, task: Task, avoided: Collection[str]) -> Iterator[None]:
    """What a task does with its share of a GPU.

    Args:
        avoided: GPUs (`failures.GpuFailure.gpu`) that the driver has given up.

    Raises:
        GpuLostError: the GPU is given up, fails its self-test, or an error in the block is the device's own.
    """
    if not task.gpu:
        yield
        return
    if _name() in avoided:
        raise _lost(UNFIT, "it was given up before")
    if job.trial_options.get("device") != "cpu" and (problem := _problem()):
        raise _lost(UNFIT, problem)
    # Now: after an error of its own CUDA answers nothing.
    uuid = _uuid()
    try:
        yield
    except RuntimeError as error:
        found = gpu_error(error)
        if found is None or found.kind != "device":
            raise
        raise _lost(ERROR, f"{found.said}{uuid}") from error


def _lost(verdict: str, problem: str) -> GpuLostError:
    group = ray.util.get_current_placement_group()
    return GpuLostError(f"[{group.id.hex() if group else 'none'}] {_name()} {verdict}: {problem}")


@cache
def _name() -> str:
    context = ray.get_runtime_context()
    ids = ",".join(context.get_accelerator_ids().get("GPU", ()))
    return f"GPU {ids} of node {context.get_node_id()[:6]}"


@cache
def _problem() -> str:
    """Of this process's GPU, once; "" where it works, and where GPUs are logical."""
    from bdray.training import self_test
    from bdray.training.device import pick_device

    device = pick_device()
    if device.type != "cpu":
        return self_test.problem_of(device)
    if not has_real_gpus():
        return ""
    return "; ".join(["PyTorch can use none here", *card_problems()])


def has_real_gpus() -> bool:
    """Whether Ray has found cards on this node; those that `--num-gpus` names have no type."""
    here = ray.get_runtime_context().get_node_id()
    return any(gpu_types_in(node["Resources"]) for node in ray.nodes() if node["NodeID"] == here)


def _uuid() -> str:
    import torch

    return f" ({torch.cuda.get_device_properties(0).uuid})" if torch.cuda.is_available() else ""
