"""What trials need of a GPU and how fast they train, measured in a process of its own: it ends with the measurement and
holds no memory."""

from __future__ import annotations

import faulthandler
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from pydantic import BaseModel

from bdray.cards import Cards
from bdray.cluster.failures import in_one_line
from bdray.cluster.job import ClusterJob
from bdray.cluster.node_resources import gpu_types_in, of_gpu_type
from bdray.cluster.nodes import ANSWER_S, Node, able_nodes, asked
from bdray.cluster.trainable import set_up_worker
from bdray.condition import Condition
from bdray.errors import ClusterError
from bdray.machine import Machine
from bdray.recipes import Resolved
from bdray.trial.compiling import Compiling
from bdray.trial.costing import Cost
from bdray.trial.measured import Unmeasured, attempted
from bdray.trial.needs import Need
from bdray.trial.pace import Pace, TrainingKind

if TYPE_CHECKING:
    from bdray.trial.setup import Experiment

M = TypeVar("M", bound=BaseModel)
_Measure = Callable[[Condition, ClusterJob], M | Unmeasured]


MEASURED_S = 1800.0
"""How long a measurement may take before its process is ended: a GPU may hang."""


def measure_on(gpu_type: str, conditions: Sequence[Condition], job: ClusterJob) -> list[Need | Unmeasured]:
    """Measure what `conditions` need of a whole GPU of this type, one after the other.

    Args:
        job: what workers set themselves up with; its tasks are not needed.
    """
    return measured_elsewhere(_on_gpu(gpu_type), job, _need, conditions)


def paces_on(
    machine: Machine, conditions: Sequence[Condition], threads: int, job: ClusterJob
) -> list[Pace | Unmeasured]:
    """Measure how fast `conditions` train on a machine of this kind."""
    return measured_elsewhere(_on_machine(machine), job, partial(_pace, machine=machine, threads=threads), conditions)


def compilings_on(
    machine: Machine, work: Sequence[TrainingKind], threads: int, job: ClusterJob
) -> list[Compiling | Unmeasured]:
    """Measure what compiling brings each training on a machine of this kind."""
    found = []
    for training in work:
        measure = partial(_compiling, machine=machine, threads=threads, images=training.images)
        found += measured_elsewhere(_on_machine(machine), job, measure, [training.example])
    return found


def costs_on(
    machine: Machine, conditions: Sequence[Condition], threads: int, job: ClusterJob
) -> list[Cost | Unmeasured]:
    """Measure what `conditions` cost on a machine of this kind."""
    return measured_elsewhere(_on_machine(machine), job, partial(_cost, machine=machine, threads=threads), conditions)


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
    return {"num_gpus": 1, "resources": of_gpu_type(gpu_type)}


def measured_elsewhere(
    where: dict[str, Any], job: ClusterJob, measure: _Measure[M], conditions: Sequence[Condition]
) -> list[M | Unmeasured]:
    """`measure` of each condition, one after the other in a process elsewhere.

    Where that raises an error or takes the process with it, it is tried once more in a process of its own: the memory
    that was not enough may have been that of the one before.
    """
    contents, found = [json.dumps(condition.content()) for condition in conditions], list[M | Unmeasured]()
    while len(found) < len(contents):
        found += _until_lost(where, job, measure, contents[len(found) :])
    return [
        _until_lost(where, job, measure, [content])[0] if isinstance(one, Unmeasured) and one.failed else one
        for content, one in zip(contents, found, strict=True)
    ]


def _until_lost(
    where: dict[str, Any], job: ClusterJob, measure: _Measure[M], contents: Sequence[str]
) -> list[M | Unmeasured]:
    """What a process measures of `contents`, up to the one with which it is lost."""
    # It begins with the next one when its last answer is here: then no later death takes that away.
    heard = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
    measuring = ray.remote(max_retries=0, max_calls=1, **heard, **where)(_measure)
    found: list[M | Unmeasured] = []
    try:
        for answer in measuring.remote(job, measure, contents, MEASURED_S):
            found.append(ray.get(answer))  # noqa: PERF401 - what was found before the loss is kept
    except ray.exceptions.RayError as error:
        if len(found) < len(contents):
            found.append(Unmeasured(in_one_line(str(error))))
    return found


def smallest_cards() -> dict[str, int]:
    """Bytes of the smallest card of each type, where the nodes' drivers tell."""
    types = {node["NodeID"]: gpu_types_in(node["Resources"]) for node in ray.nodes()}
    typed = [node for node in able_nodes() if types[node.node_id]]
    found: dict[str, int] = {}
    for node, answer in asked(typed, lambda node: (_smallest_card,), timeout_s=ANSWER_S):
        for gpu_type in types[node.node_id] if isinstance(answer, int) else ():
            found[gpu_type] = min(answer, found.get(gpu_type, answer))
    return found


def _smallest_card() -> int | None:
    """On the node."""
    return min((int(card.mib) * 2**20 for card in Cards.here().cards if card.mib.isdecimal()), default=None)


def gpu_types() -> list[str]:
    """The types of GPU in the cluster, as Ray names them; none where GPUs are only logical."""
    return gpu_types_in(ray.cluster_resources())


def _measure(
    job: ClusterJob, measure: _Measure[M], contents: Sequence[str], limit_s: float
) -> Iterator[M | Unmeasured]:
    """In the worker."""
    set_up_worker(job)
    for content in contents:
        faulthandler.dump_traceback_later(limit_s, exit=True)
        try:
            found = attempted(partial(_measure_one, job, measure, content))
        finally:
            faulthandler.cancel_dump_traceback_later()
        yield found


def _measure_one(job: ClusterJob, measure: _Measure[M], content: str) -> M | Unmeasured:
    from bdray.training.device import deterministically

    return deterministically(partial(measure, Condition.parse(json.loads(content)), job))


def _need(condition: Condition, job: ClusterJob) -> Need | Unmeasured:
    from bdray.training.device import pick_device
    from bdray.trial.needs import measure_peak

    return measure_peak(condition, pick_device("cuda"), job.trial_options.get("precision") or "float32")


def _pace(condition: Condition, job: ClusterJob, *, machine: Machine, threads: int) -> Pace:
    from bdray.trial.pace import measure_pace

    return measure_pace(_experiment(condition, job, machine, threads))


def _cost(condition: Condition, job: ClusterJob, *, machine: Machine, threads: int) -> Cost:
    from bdray.trial.costing import measure_cost

    return measure_cost(_experiment(condition, job, machine, threads), machine.name, threads)


def _compiling(
    condition: Condition, job: ClusterJob, *, machine: Machine, threads: int, images: float
) -> Compiling | Unmeasured:
    from bdray.trial.compiling import measure_compiling

    return measure_compiling(_experiment(condition, job, machine, threads), images)


def _experiment(condition: Condition, job: ClusterJob, machine: Machine, threads: int) -> Experiment:
    from bdray.training.device import pick_device, prepare_process
    from bdray.trial.setup import Experiment

    # Ray leaves the GPUs visible to a process that was given none of them.
    device = pick_device("cuda" if machine.gpu else "cpu")
    prepare_process(device, threads)
    auto: Resolved = job.trial_options.get("precision") or "float32"
    return Experiment.prepare(condition, device, job.trial_options.get("cache"), auto=auto)
