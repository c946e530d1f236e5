"""What a sweep decides once, before anything trains, and writes into its `space.yaml`: what changes speed and bits
alone.

A sweep that goes on keeps what is written there, on whatever machine it goes on. What the space itself says was decided
stands above that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from bdray.checksum import say_damaged
from bdray.condition import Condition
from bdray.errors import ClusterError, SpaceError, StorageNotFoundError
from bdray.gpu import MOST_ON_ONE_GPU
from bdray.machine import Machine
from bdray.space import SearchSpace
from bdray.space.resources import Decided, decided_in
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SPACE, SweepFolder
from bdray.trial.compiling import COMPILINGS, Compiling, asks_for_compiling, decide_compile
from bdray.trial.measured import Measured, Unmeasured
from bdray.trial.pace import PACES, Pace, TrainingKind, decide_precision, is_auto, trainings

if TYPE_CHECKING:
    from bdray.cluster import ClusterJob


class Cluster(Protocol):
    """What is asked of `bdray.cluster.ClusterRun`."""

    def resources(self) -> dict[str, float]: ...
    def node_cpus(self) -> list[float]: ...
    def machines(self, *, gpus: bool, cpus: bool) -> list[Machine]: ...
    def paces(
        self, machine: Machine, conditions: Sequence[Condition], threads: int, job: ClusterJob
    ) -> list[Pace | Unmeasured]: ...
    def compilings(
        self, machine: Machine, work: Sequence[TrainingKind], threads: int, job: ClusterJob
    ) -> list[Compiling | Unmeasured]: ...


def as_decided(space: SearchSpace, sweep: Storage) -> SearchSpace:
    """The space with what this sweep has decided before."""
    return with_decided(space, _decided_before(sweep).updated(space.resources.decided))


def _decided_before(sweep: Storage) -> Decided:
    """By `sweep.json`, which has a checksum; where that was lost, or is of an older version, by `space.yaml`. What was
    deleted there is decided anew."""
    folder = SweepFolder(sweep)
    known = Decided.model_validate(folder.info().decided) if folder.is_sweep else Decided()
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


def decide_cpu(space: SearchSpace, conditions: Sequence[Condition], cluster: Cluster, most: int | None) -> Decided:
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
    cores, gpus = cluster.node_cpus(), cluster.resources()["gpu"]
    if not cores:
        raise ClusterError("resources.cpu: auto shares a node's CPUs, and the cluster has no node with any")
    shares = [gpu for gpu in (space.resources_for(c).gpu for c in conditions) if gpus and gpu != "auto" and gpu > 0]
    limits = [most, int(gpus / min(shares)) if shares else None]
    # Conditions that share a poison stage wait for it.
    trials = min([len({c.poison_fingerprint for c in conditions}), *(limit for limit in limits if limit)])
    share = cpu_share(cores, trials)
    why = f"{int(sum(cores))} cores, at most {trials} trial{'s' * (trials > 1)} at once"
    return decided.updated(Decided(cpu=share, because={"cpu": why}))


def cpu_share(cores: Sequence[float], trials: int) -> int:
    """CPUs for each of `trials` that could run side by side on nodes with so many `cores`: the largest share with which
    all of them still do, or 1."""
    fitting = (share for share in range(int(min(cores)), 1, -1) if sum(int(node / share) for node in cores) >= trials)
    return next(fitting, 1)


def decide_format(
    space: SearchSpace, conditions: Sequence[Condition], cluster: Cluster, storage: Storage, job: ClusterJob
) -> Decided:
    """What `precision: auto` comes to in all conditions, where that is not known yet.

    Args:
        conditions: all of the sweep.
        storage: where measurements are kept.
    """
    decided = space.resources.decided
    if decided.precision is not None or not any(map(is_auto, conditions)):
        return decided
    machines, threads = where_trials_run(space, conditions, cluster)
    decision = decide_precision(
        trainings(conditions, job.trial_options.get("max_batches")),
        machines,
        threads,
        Measured(storage, PACES, Pace),
        lambda machine, examples: cluster.paces(machine, examples, threads, job),
    )
    return decided.updated(Decided(precision=decision.precision, because={"precision": decision.why}))


def decide_compiling(
    space: SearchSpace, conditions: Sequence[Condition], cluster: Cluster, storage: Storage, job: ClusterJob
) -> Decided:
    """What `compile: auto` comes to, where that is not known yet; after precision. See `decide_format`."""
    decided = space.resources.decided
    if decided.compile is not None or not any(map(asks_for_compiling, conditions)):
        return decided
    machines, threads = where_trials_run(space, conditions, cluster)
    chosen = decide_compile(
        trainings(conditions, job.trial_options.get("max_batches"), asks_for_compiling),
        machines,
        threads=threads,
        precision=decided.precision or "float32",
        processes=_side_by_side(space, conditions, cluster, threads),
        kept=Measured(storage, COMPILINGS, Compiling),
        measure=lambda machine, work: cluster.compilings(machine, work, threads, job),
    )
    return decided.updated(Decided(compile=chosen.shapes, because={"compile": chosen.why}))


def _side_by_side(space: SearchSpace, conditions: Sequence[Condition], cluster: Cluster, threads: int) -> int:
    """How many trials run at once at most: by the GPUs where all need one, of which `auto` may be its smallest part."""
    slots = sum(int(cores / threads) for cores in cluster.node_cpus())
    asked = [space.resources_for(condition).gpu for condition in conditions]
    least = min(1 / MOST_ON_ONE_GPU if gpu == "auto" else gpu for gpu in asked)
    if least and (gpus := cluster.resources()["gpu"]):
        slots = min(slots, int(gpus / least))
    return max(1, slots)


def where_trials_run(
    space: SearchSpace, conditions: Sequence[Condition], cluster: Cluster
) -> tuple[list[Machine], int]:
    """The kinds of machine that trials may land on, and their threads (the most, where they differ)."""
    needs = [space.resources_for(condition) for condition in conditions]
    on_gpu = [bool(cluster.resources()["gpu"]) and need.gpu != 0 for need in needs]
    machines = cluster.machines(gpus=any(on_gpu), cpus=not all(on_gpu))
    return machines, max([1, *(int(need.cpu) for need in needs if need.cpu != "auto")])
