"""The nodes of the cluster: what each has, and whether trials would come to the same on all of them.

Each is asked in a process there that needs none of its CPUs, so a busy node answers too.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray._private import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bdray.cards import card_problems
from bdray.cluster.autoscaling import added, has_autoscaler, waiting
from bdray.cluster.failures import in_one_line
from bdray.cluster.gpu_health import has_real_gpus
from bdray.cluster.job import ClusterJob, NodeRequirements, Task
from bdray.cluster.node_check import contents_of, data_problems, installation_problems, unshared
from bdray.cluster.node_resources import NodeResources
from bdray.cluster.trainable import set_up_worker
from bdray.condition import Condition
from bdray.errors import ClusterError, StorageError, StorageNotFoundError, UserError
from bdray.inventory import Installation, Rows, data_sets, devices, versions
from bdray.plugins import PluginError, load_plugins
from bdray.store.storage import Storage

T = TypeVar("T")

ANSWER_S = 180.0
"""How long a node may take to start a process and answer; a busy machine takes a minute."""

JOIN_S = 120.0
"""How long a cluster without any node that may run trials is waited for."""

GROW_S = 900.0
"""The same where an autoscaler starts it: a machine in a cloud takes minutes."""

CAPACITY_S = 5.0
"""How long what the cluster has is taken for known."""

_PROBE = "probe"


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    node_id: str
    host: str
    address: str
    cpu: float
    gpu: float
    memory_bytes: float

    @property
    def name(self) -> str:
        return f"node {self.node_id[:6]} ({self.host}, {self.address})"

    @property
    def options(self) -> dict[str, Any]:
        """Of a task that runs there or nowhere, also where all CPUs are taken."""
        return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(self.node_id, soft=False)}


@dataclass(frozen=True)
class NodeInventory:
    """What a node says of itself.

    Attributes:
        sections: rows by title; empty where it gave no answer.
        problem: why it gave none.
    """

    node: Node
    sections: Mapping[str, Rows] = field(default_factory=dict)
    problem: str = ""

    @property
    def title(self) -> str:
        node = self.node
        share = f"{node.cpu:g} CPUs, {node.gpu:g} GPUs" if node.gpu else f"{node.cpu:g} CPUs"
        return f"{node.name}: {share}, {node.memory_bytes / 2**30:.1f} GiB memory for Ray"


def able_nodes() -> list[Node]:
    """Those that may run trials."""
    return [node for node in nodes() if node.cpu]


def cluster_capacity() -> Callable[[], NodeResources]:
    """What says how much all nodes have together, asked anew every few seconds."""
    asked_at, known = -math.inf, NodeResources(0.0)

    def capacity() -> NodeResources:
        nonlocal asked_at, known
        if time.monotonic() - asked_at > CAPACITY_S:
            asked_at, total = time.monotonic(), ray.cluster_resources()
            known = NodeResources(total.get("CPU", 0.0), total.get("GPU", 0.0))
        return known

    return capacity


def gpus_left(given_up: Collection[str]) -> float:
    """How many GPUs there are beside those (`failures.GpuFailure.gpu`); infinite where an autoscaler adds nodes."""
    if has_autoscaler():
        return math.inf
    able = able_nodes()
    alive = tuple(node.node_id[:6] for node in able)
    return sum(node.gpu for node in able) - sum(gpu.endswith(alive) for gpu in given_up)


def nodes() -> list[Node]:
    """Those that are alive, by address."""
    found = [
        Node(
            node_id=node["NodeID"],
            host=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            cpu=node["Resources"].get("CPU", 0.0),
            gpu=node["Resources"].get("GPU", 0.0),
            memory_bytes=node["Resources"].get("memory", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: (node.address, node.node_id))


def node_of_process(said: str) -> str | None:
    """The id of the node on which a trial's process was, by what Ray says of its loss; None where that is not known."""
    found = re.search(r"actor_id[:=]\s*([0-9a-f]{32})", said)
    facts = state.state.actor_table(found[1]) if found else {}
    return facts.get("Address", {}).get("NodeID") or None


def node_resources(tasks: Sequence[Task] = ()) -> list[NodeResources]:
    """What the nodes have that can run trials; for those of `tasks` that none of them can run, what an autoscaler would
    add."""
    there = [NodeResources(node.cpu, node.gpu) for node in able_nodes()]
    shares = {NodeResources(task.cpu, task.gpu) for task in tasks if not any(place.holds(task) for place in there)}
    return there + added(sorted(shares))


def await_node(waits: Callable[[], object], *, gpus: bool) -> None:
    """Waits for the first node that may run trials: those of a cluster that was just started are still joining, and an
    autoscaler adds none before something waits.

    Args:
        waits: is called where there is none yet.
        gpus: trials use some, so where an autoscaler adds them, the first node has one: what trials need of it is
            measured before they start.

    Raises:
        ClusterError: none has come.
    """
    grows, first = has_autoscaler(), NodeResources(1.0)
    with_gpu = NodeResources(1.0, 1.0)
    if grows and gpus and not any(node.gpu for node in able_nodes()) and added([with_gpu]):
        first = with_gpu
    if any(node.gpu >= first.gpu for node in able_nodes()):
        return
    waits()
    deadline = time.monotonic() + (GROW_S if grows else JOIN_S)
    with waiting([first] if grows else []):
        while not any(node.gpu >= first.gpu for node in able_nodes()):
            if time.monotonic() > deadline:
                raise ClusterError("no node with a CPU has joined the cluster, so none can run trials (ray status)")
            time.sleep(0.5)


def inventories(roots: Mapping[str, str]) -> Iterator[NodeInventory]:
    """What every node has, also those that run no trials. `roots`: folders by data set that are looked into there."""
    for node, answer in asked(nodes(), lambda node: (_sections, roots), timeout_s=None):
        yield NodeInventory(node, problem=answer) if isinstance(answer, str) else NodeInventory(node, answer)


def check_nodes(job: ClusterJob, conditions: Sequence[Condition]) -> NodeRequirements:
    """Whether trials come to the same on all nodes that may run one; fetches and decodes the data there.

    Args:
        job: what workers set themselves up with; its tasks are not needed.
        conditions: whose data sets are needed.

    Returns:
        The nodes there are, and what those must be like that join later.

    Raises:
        UserError: one sentence a node whose code, plugins, versions, data or view of the storage are not the driver's.
        StorageError: the driver cannot write into the storage.
    """
    able, mine, contents = able_nodes(), Installation.here(job.plugins), contents_of(conditions)
    _require_none(unlike(job, able, mine))
    _require_none(unprepared(job, able, contents))
    return NodeRequirements(mine, frozenset(node.node_id for node in able), contents)


def unlike(job: ClusterJob, able: Sequence[Node], mine: Installation) -> list[tuple[Node, Sequence[str]]]:
    """What is wrong with the code, plugins, versions and view of the storage of each node.

    Raises:
        StorageError: the driver cannot write into the storage.
    """
    token = secrets.token_hex(8)
    problems: list[tuple[Node, Sequence[str]]] = []
    job.sweep.write_atomic(f"{_PROBE}/{token}/driver", token)
    try:
        for node, answer in asked(able, lambda node: (_checked, job, token, node.node_id), timeout_s=ANSWER_S):
            found = [answer] if isinstance(answer, str) else [*answer[1], *installation_problems(answer[0], mine)]
            if not found and not job.sweep.exists(f"{_PROBE}/{token}/{node.node_id}"):
                found = [f"what it writes into {job.sweep.uri} does not arrive there"]
            problems.append((node, found))
    finally:
        with suppress(StorageError):
            job.sweep.delete_folder(_PROBE)
    return problems


def unprepared(job: ClusterJob, able: Sequence[Node], contents: Sequence[str]) -> list[tuple[Node, Sequence[str]]]:
    """What is wrong with the data sets of each node, once they are fetched and decoded there."""
    answers = asked(able, lambda node: (_prepared, job, contents), timeout_s=None)
    return [(node, [answer] if isinstance(answer, str) else answer) for node, answer in answers]


def _require_none(problems: Sequence[tuple[Node, Sequence[str]]]) -> None:
    lines = [f"{node.name}: {'; '.join(found)}" for node, found in problems if found]
    if lines:
        raise UserError("nothing was started: the nodes are not alike\n  " + "\n  ".join(lines))


def asked(
    able: Sequence[Node], question: Callable[[Node], tuple[Any, ...]], timeout_s: float | None
) -> Iterator[tuple[Node, Any]]:
    """Every node's answer to `question(node)` (a function and its arguments), asked side by side; a string where there
    is none."""
    references = []
    for node in able:
        function, *arguments = question(node)
        remote = ray.remote(max_retries=0, **node.options)(function)
        references.append((node, remote.remote(*arguments)))
    for node, reference in references:
        try:
            yield node, ray.get(reference, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            yield node, f"it has not answered within {timeout_s:.0f} s"
        except ray.exceptions.RayError as error:
            yield node, f"it cannot be asked ({in_one_line(str(error))})"


def _sections(roots: Mapping[str, str]) -> dict[str, Rows]:
    """On the node."""
    with suppress(PluginError):
        load_plugins()
    return {
        "versions": versions(),
        "devices": devices(),
        "data sets": tuple((found.name, found.said) for found in data_sets(roots)),
    }


def _checked(job: ClusterJob, token: str, node_id: str) -> tuple[Installation, list[str]]:
    """On the node: what it has, and what is wrong with it by itself."""
    problems = []
    try:
        set_up_worker(job)
    except PluginError as error:
        problems.append(str(error))
    problems += storage_problems(job.sweep, token, node_id)
    if job.gpus != "none" and has_real_gpus():
        problems += card_problems(shared=job.gpus == "shared")
    return Installation.here(job.plugins), problems


def storage_problems(sweep: Storage, token: str, node_id: str) -> list[str]:
    """On a node: what is wrong with its view of the storage, in which the driver left a file named by `token`."""
    try:
        sweep.read_text(f"{_PROBE}/{token}/driver")
        sweep.write_atomic(f"{_PROBE}/{token}/{node_id}", token)
    except StorageNotFoundError:
        return [unshared(sweep)]
    except StorageError as error:
        return [str(error)]
    return []


def _prepared(job: ClusterJob, contents: Sequence[str]) -> list[str]:
    """On the node: what is wrong with its data sets."""
    set_up_worker(job)
    return data_problems(job, contents)
