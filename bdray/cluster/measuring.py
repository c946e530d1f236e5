"""What trials need of a GPU and how fast they train, measured in a process of its own: it ends with the measurement and
holds no memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from bdray.cluster.job import ClusterJob
from bdray.cluster.nodes import ANSWER_S, Node, able_nodes, asked
from bdray.cluster.trainable import set_up_worker
from bdray.condition import Condition
from bdray.errors import ClusterError
from bdray.machine import Machine
from bdray.recipes import Resolved
from bdray.trial.compiling import Compiling
from bdray.trial.costing import Cost
from bdray.trial.needs import Need
from bdray.trial.pace import Pace, Training

if TYPE_CHECKING:
    from bdray.trial.setup import Experiment

_Measure = Callable[[Condition, ClusterJob], Need | Pace | Compiling | Cost | None]


def measure_on(gpu_type: str, conditions: Sequence[Condition], job: ClusterJob) -> list[Need | None]:
    """Measure `conditions` one after the other on a whole GPU of this type; None where that was not possible.

    Args:
        job: what workers set themselves up with; its tasks are not needed.
    """
    # Whole GPUs, where nothing is known, are slow and safe.
    peaks = _in_a_worker(_on_gpu(gpu_type), job, _need, conditions)
    return [Need.model_validate(peak) if peak else None for peak in peaks]


def paces_on(machine: Machine, conditions: Sequence[Condition], threads: int, job: ClusterJob) -> list[Pace | None]:
    """Measure how fast `conditions` train on a machine of this kind; None where that was not possible."""
    found = _in_a_worker(_on_machine(machine), job, partial(_pace, machine=machine, threads=threads), conditions)
    return [Pace.model_validate(pace) if pace else None for pace in found]


def compilings_on(machine: Machine, work: Sequence[Training], threads: int, job: ClusterJob) -> list[Compiling | None]:
    """Measure what compiling brings each training on a machine of this kind; None where it is too short to try, or that
    was not possible."""
    found = []
    for training in work:
        measure = partial(_compiling, machine=machine, threads=threads, images=training.images)
        found += _in_a_worker(_on_machine(machine), job, measure, [training.example])
    return [Compiling.model_validate(one) if one else None for one in found]


def costs_on(machine: Machine, conditions: Sequence[Condition], threads: int, job: ClusterJob) -> list[Cost | None]:
    """Measure what `conditions` cost on a machine of this kind; None where that was not possible."""
    found = _in_a_worker(_on_machine(machine), job, partial(_cost, machine=machine, threads=threads), conditions)
    return [Cost.model_validate(cost) if cost else None for cost in found]


def machines(*, gpus: bool, cpus: bool) -> list[Machine]:
    """The kinds of machine in the cluster: those of its GPUs, and those of the processors of its nodes.

    Logical GPUs have no type: what is computed on them is computed on processors.
    """
    types = gpu_types() if gpus else []
    processors = list(_cpu_nodes()) if cpus or not types else []
    return [*processors, *(Machine(name, "unknown", gpu=True) for name in types)]


def node_cpus() -> list[float]:
    """Logical CPUs of each node that has some."""
    return [node.cpu for node in able_nodes()]


def _cpu_nodes() -> dict[Machine, Node]:
    """A node for each kind of processor, of those that answer.

    Raises:
        ClusterError: none does.
    """
    able = able_nodes()
    if [node.node_id for node in able] == [ray.get_runtime_context().get_node_id()]:
        return {Machine.here(): able[0]}
    answers = asked(able, lambda node: (_here,), timeout_s=ANSWER_S)
    found = {answer: node for node, answer in answers if isinstance(answer, Machine)}
    if not found:
        raise ClusterError("no node of the cluster that may run trials answers")
    return found


def _here() -> Machine:
    """On the node. Ray takes no bound method."""
    return Machine.here()


def _on_machine(machine: Machine) -> dict[str, Any]:
    return _on_gpu(machine.name) if machine.gpu else _cpu_nodes()[machine].options


def _on_gpu(gpu_type: str) -> dict[str, Any]:
    return {"num_gpus": 1, "resources": {_resource(gpu_type): 0.001}}


def _in_a_worker(
    where: dict[str, Any], job: ClusterJob, measure: _Measure, conditions: Sequence[Condition]
) -> list[dict[str, Any] | None]:
    """`_measure` in a process elsewhere; None for all where it is lost: what is wrong shows in the trials."""
    measuring = ray.remote(max_retries=0, **where)(_measure)
    try:
        return list(ray.get(measuring.remote(job, measure, [json.dumps(c.content()) for c in conditions])))
    except ray.exceptions.RayError:
        return [None] * len(conditions)


def gpu_types() -> list[str]:
    """The types of GPU in the cluster, as Ray names them; none where GPUs are only logical."""
    prefix = _resource("")
    return sorted(name.removeprefix(prefix) for name in ray.cluster_resources() if name.startswith(prefix))


def _resource(gpu_type: str) -> str:
    return f"accelerator_type:{gpu_type}"


def _measure(job: ClusterJob, measure: _Measure, contents: Sequence[str]) -> list[dict[str, Any] | None]:
    """In the worker."""
    set_up_worker(job)
    found: list[dict[str, Any] | None] = []
    for content in contents:
        try:
            measured = measure(Condition.parse(json.loads(content)), job)
        except Exception:
            # Whatever is wrong with a condition, its own trial will record it.
            measured = None
        found.append(measured.model_dump() if measured else None)
    return found


def _need(condition: Condition, job: ClusterJob) -> Need | None:
    from bdray.training.device import pick_device
    from bdray.trial.needs import measure_peak

    return measure_peak(condition, pick_device(), job.trial_options.get("precision") or "float32")


def _pace(condition: Condition, job: ClusterJob, *, machine: Machine, threads: int) -> Pace:
    from bdray.trial.pace import measure_pace

    return measure_pace(_experiment(condition, job, machine, threads))


def _cost(condition: Condition, job: ClusterJob, *, machine: Machine, threads: int) -> Cost:
    from bdray.trial.costing import measure_cost

    return measure_cost(_experiment(condition, job, machine, threads), machine.name, threads)


def _compiling(
    condition: Condition, job: ClusterJob, *, machine: Machine, threads: int, images: float
) -> Compiling | None:
    from bdray.trial.compiling import measure_compiling

    return measure_compiling(_experiment(condition, job, machine, threads), images)


def _experiment(condition: Condition, job: ClusterJob, machine: Machine, threads: int) -> Experiment:
    from bdray.training.device import pick_device, prepare_process
    from bdray.trial.setup import Experiment

    # Ray leaves the GPUs visible to a process that was given none of them.
    device = pick_device("auto" if machine.gpu else "cpu")
    prepare_process(device, threads)
    auto: Resolved = job.trial_options.get("precision") or "float32"
    return Experiment.prepare(condition, device, job.trial_options.get("cache"), auto=auto)
