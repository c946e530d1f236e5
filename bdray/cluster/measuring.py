"""Kinds of training measured on the cluster's kinds of machine, in a process of its own: it ends with the measurement
and holds no memory."""

from __future__ import annotations

import faulthandler
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from bdray.cards import Cards
from bdray.cluster.failures import in_one_line
from bdray.cluster.job import ClusterJob
from bdray.cluster.node_resources import gpu_types_in, of_gpu_type
from bdray.cluster.nodes import ANSWER_S, Node, able_nodes, asked
from bdray.cluster.trainable import set_up_worker
from bdray.errors import ClusterError
from bdray.machine import Machine
from bdray.trial.measurements import Answer, TrainingKind

_Measure = Callable[[TrainingKind, ClusterJob], Answer]

MEASURED_S = 1800.0
"""How long a kind may take before the process that measures it is ended: a GPU may hang."""


def measure_on(machine: Machine, kinds: Sequence[TrainingKind], threads: int, job: ClusterJob) -> list[Answer]:
    """Measure what is asked of `kinds` on a machine of this kind, one after the other, on a whole GPU where it has one.

    Args:
        job: what workers set themselves up with; its tasks are not needed.
    """
    on_gpu = {"num_gpus": 1, "resources": of_gpu_type(machine.name)}
    where = on_gpu if machine.gpu else _cpu_nodes()[machine].options
    return measured_elsewhere(where, job, partial(_measured_here, machine=machine, threads=threads), kinds)


def machines(*, gpus: bool, cpus: bool) -> list[Machine]:
    """The kinds of machine in the cluster: those of its GPUs, and those of the processors of its nodes.

    Logical GPUs have no type: what is computed on them is computed on processors.
    """
    types = gpu_types() if gpus else []
    processors = list(_cpu_nodes()) if cpus or not types else []
    return [*processors, *(Machine(name, "unknown", gpu=True) for name in types)]


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


def measured_elsewhere(
    where: dict[str, Any], job: ClusterJob, measure: _Measure, kinds: Sequence[TrainingKind]
) -> list[Answer]:
    """`measure` of each kind, one after the other in a process elsewhere.

    What fails or takes the process with it is tried once more in a process of its own: the memory that was not enough
    may have been that of the one before.
    """
    found = list[Answer]()
    while len(found) < len(kinds):
        found += _until_lost(where, job, measure, kinds[len(found) :])
    for index, (kind, answer) in enumerate(zip(kinds, found, strict=True)):
        if answer.problems:
            left = replace(kind, parts=frozenset(answer.problems), known=answer.measurement or kind.known)
            (again,) = _until_lost(where, job, measure, [left])
            found[index] = replace(again, measurement=again.measurement or answer.measurement)
    return found


def _until_lost(
    where: dict[str, Any], job: ClusterJob, measure: _Measure, kinds: Sequence[TrainingKind]
) -> list[Answer]:
    """What a process measures of `kinds`, up to the one with which it is lost."""
    # It begins with the next one when its last answer is here: then no later death takes that away.
    heard = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
    measuring = ray.remote(max_retries=0, max_calls=1, **heard, **where)(_measure)
    found: list[Answer] = []
    # Unpickled there when users' components can be imported.
    pickled = [pickle.dumps(kind) for kind in kinds]
    try:
        for answer in measuring.remote(job, measure, pickled, MEASURED_S):
            found.append(ray.get(answer))  # noqa: PERF401 - what was found before the loss is kept
    except ray.exceptions.RayError as error:
        if len(found) < len(kinds):
            found.append(Answer(problems=dict.fromkeys(kinds[len(found)].parts, in_one_line(str(error)))))
    return found


def _measure(job: ClusterJob, measure: _Measure, pickled: Sequence[bytes], limit_s: float) -> Iterator[Answer]:
    """In the worker."""
    set_up_worker(job)
    for kind in pickled:
        faulthandler.dump_traceback_later(limit_s, exit=True)
        try:
            found = measure(pickle.loads(kind), job)
        finally:
            faulthandler.cancel_dump_traceback_later()
        yield found


def _measured_here(kind: TrainingKind, job: ClusterJob, *, machine: Machine, threads: int) -> Answer:
    from bdray.training.device import pick_device
    from bdray.trial import run_trial
    from bdray.trial.bench import Bench

    # Ray leaves the GPUs visible to a process that was given none of them.
    device, cache = pick_device("cuda" if machine.gpu else "cpu"), job.trial_options.get("cache")
    set_up = partial(set_up_worker, job)
    return Bench(kind, machine, device, threads, cache, trial=run_trial, set_up=set_up).answer()


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
