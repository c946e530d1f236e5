"""What a sweep decides once, before anything trains, and writes into its `space.yaml`: what changes speed and bits
alone.

A sweep that goes on keeps what is written there, on whatever machine it goes on. What the space itself says was decided
stands above that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from bdray.checksum import say_damaged
from bdray.condition import Condition
from bdray.errors import ClusterError, SpaceError, StorageNotFoundError
from bdray.gpu import MOST_ON_ONE_GPU
from bdray.machine import Machine
from bdray.space import SearchSpace
from bdray.space.resources import Decided, decided_in
from bdray.store.file_names import SPACE
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.sweeping.workload import training_label
from bdray.trial.measurements import (
    Answer,
    Measurements,
    Packing,
    Part,
    Survey,
    TrainingKind,
    asks_for_compiling,
    is_auto,
    kinds_of,
)

if TYPE_CHECKING:
    from bdray.cluster import ClusterJob, ClusterRun


_WHOLE = "its need of a GPU was not measured, so it gets a whole one"


def as_decided(space: SearchSpace, sweep: Storage) -> SearchSpace:
    """The space with what this sweep has decided before."""
    return with_decided(space, _decided_before(sweep).updated(space.resources.decided))


def _decided_before(sweep: Storage) -> Decided:
    """By `sweep.json`, which has a checksum; where that was lost, or is of an older version, by `space.yaml`. What was
    deleted there is decided anew."""
    info = SweepFolder(sweep).info_if_any()
    known = Decided.model_validate(info.decided) if info else Decided()
    try:
        said = decided_in(sweep.read_bytes(SPACE).decode(errors="replace"))
    except StorageNotFoundError:
        return known
    except SpaceError as error:
        again = (
            "what was decided is known from sweep.json" if known != Decided() else "what was decided is decided anew"
        )
        say_damaged(sweep.uri_of(SPACE), str(error), f"it is written again; {again}")
        return known
    return said if said == Decided() or known == Decided() else known


def with_decided(space: SearchSpace, decided: Decided) -> SearchSpace:
    """The space with these decisions."""
    return replace(space, resources=replace(space.resources, decided=decided))


def decide_cpu(space: SearchSpace, conditions: Sequence[Condition], cluster: ClusterRun, most: int | None) -> Decided:
    """What `resources.cpu: auto` comes to, where that is not known yet.

    Args:
        conditions: all of the sweep.
        most: trials at once at most.

    Raises:
        ClusterError: no node may run trials.
    """
    decided = space.resources.decided
    if decided.cpu is not None or not any(space.resources_for(condition).cpu == "auto" for condition in conditions):
        return decided
    places = _places(space, conditions, cluster)
    if not places:
        raise ClusterError("resources.cpu: auto shares a node's CPUs, and the cluster has no node with any")
    limits = most, sum(place.trials for place in places)
    # Conditions that share a poison stage wait for it.
    trials = int(min([len({c.poison_fingerprint for c in conditions}), *(limit for limit in limits if limit)]))
    share = cpu_share(places, trials)
    why = f"{int(sum(place.cpu for place in places))} cores, at most {trials} trial{'s' * (trials > 1)} at once"
    return decided.updated(Decided(cpu=share, because={"cpu": why}))


class Place(NamedTuple):
    """A node on which trials may land.

    Attributes:
        trials: for how many its GPUs have room.
    """

    cpu: float
    trials: float = math.inf

    def slots(self, share: int) -> int:
        """How many trials with so many CPUs run there at once."""
        return int(min(self.cpu / share, self.trials))


def cpu_share(places: Sequence[Place], trials: int) -> int:
    """CPUs for each of `trials` that could run side by side at these places: the largest share with which all of them
    still do, or 1."""
    shares = range(int(min(place.cpu for place in places)), 1, -1)
    return next((share for share in shares if sum(place.slots(share) for place in places) >= trials), 1)


def decide(
    space: SearchSpace,
    conditions: Sequence[Condition],
    cluster: ClusterRun,
    storage: Storage,
    job: ClusterJob,
    *,
    say: Callable[[str | Text], None] = lambda line: None,
) -> tuple[Decided, Packing]:
    """What `precision: auto` and `compile: auto` come to in all conditions, where that is not known yet, and what
    trials need of GPUs. All that is to be measured of a kind of training is measured at once.

    Args:
        conditions: all of the sweep.
        storage: where measurements are kept.
        say: is told what is measured, and what could not be.
    """
    decided, kept, types = space.resources.decided, Measurements(storage), cluster.gpu_types()

    def parts(condition: Condition) -> set[Part]:
        asked: dict[Part, bool] = {
            "precision": decided.precision is None and is_auto(condition),
            "compile": decided.compile is None and asks_for_compiling(condition),
            "memory": bool(types) and space.resources_for(condition).gpu == "auto",
        }
        return {part for part, is_asked in asked.items() if is_asked}

    def measure(machine: Machine, kinds: Sequence[TrainingKind]) -> Sequence[Answer]:
        say(f"measuring {len(kinds)} kinds of training on {machine.name} ...")
        return cluster.measure(machine, kinds, threads, job)

    kinds = kinds_of(conditions, parts, job.trial_options.get("max_batches"))
    by_hand = [None if (gpu := space.resources_for(kind.example).gpu) == "auto" else gpu for kind in kinds]
    kinds = [replace(kind, precision=decided.precision, gpu=gpu) for kind, gpu in zip(kinds, by_hand, strict=True)]
    machines, threads = where_trials_run(space, conditions, cluster) if kinds else ([], 1)
    survey, asked = Survey(machines, threads, kept, measure), {part for kind in kinds for part in kind.parts}
    if "precision" in asked:
        chosen = survey.precision(kinds)
        decided = decided.updated(Decided(precision=chosen.precision, because={"precision": chosen.why}))
        kinds = [replace(kind, precision=decided.precision) for kind in kinds]
    if "compile" in asked:
        compiled, why = survey.compiling(kinds, _side_by_side(space, conditions, cluster, threads))
        decided = decided.updated(Decided(compile=compiled, because={"compile": why}))
    gpus = [machine for machine in machines if machine.gpu] or [Machine(name, "unknown", gpu=True) for name in types]
    for machine in gpus if "memory" in asked else ():
        for line in unmeasured_lines(_WHOLE, "memory", kinds, survey.of(kinds, machine)):
            say(line)
    return decided, Packing(kept, gpus, decided.precision or "float32", cluster.smallest_cards() if types else {})


def unmeasured_lines(what: str, part: Part, kinds: Sequence[TrainingKind], answers: Sequence[Answer]) -> list[Text]:
    """A line for each kind of training that could not be measured: which, `what` that means, and why."""
    return [
        Text.assemble((training_label(kind.example), "yellow"), f": {what}: {answer.problems[part]}")
        for kind, answer in zip(kinds, answers, strict=True)
        if part in answer.problems
    ]


def _side_by_side(space: SearchSpace, conditions: Sequence[Condition], cluster: ClusterRun, threads: int) -> int:
    """How many trials run at once at most."""
    return max(1, sum(place.slots(threads) for place in _places(space, conditions, cluster)))


def _places(space: SearchSpace, conditions: Sequence[Condition], cluster: ClusterRun) -> list[Place]:
    """Where trials may land: on nodes with GPUs alone where all need some."""
    # A GPU that has no type is measured by nobody, and then `auto` is a whole one.
    auto = 1 / MOST_ON_ONE_GPU if cluster.gpu_types() else 1.0
    least = min(auto if gpu == "auto" else gpu for gpu in (space.resources_for(c).gpu for c in conditions))
    nodes = cluster.node_resources()
    if least and any(node.gpu for node in nodes):
        return [Place(node.cpu, int(node.gpu / least)) for node in nodes if node.gpu]
    return [Place(node.cpu) for node in nodes]


def where_trials_run(
    space: SearchSpace, conditions: Sequence[Condition], cluster: ClusterRun
) -> tuple[list[Machine], int]:
    """The kinds of machine that trials may land on, and their threads (the most, where they differ)."""
    needs = [space.resources_for(condition) for condition in conditions]
    on_gpu = [bool(cluster.resources()["gpu"]) and need.gpu != 0 for need in needs]
    machines = cluster.machines(gpus=any(on_gpu), cpus=not all(on_gpu))
    return machines, max([1, *(int(need.cpu) for need in needs if need.cpu != "auto")])
