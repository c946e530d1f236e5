"""Tasks run by Ray Tune: a trial each, until every one has ended."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from ray import tune

from bdray.cluster.autoscaling import has_autoscaler
from bdray.cluster.daemons import memory_kills_as_actor_errors, stderr_in
from bdray.cluster.failures import LostProcesses, gpu_memory_exhausted, in_one_line, memory_exhausted
from bdray.cluster.job import PROCESS_NAME, ClusterJob, Observer, Source
from bdray.cluster.joining import Joining
from bdray.cluster.node_resources import NodeResources, most_cpus
from bdray.cluster.nodes import able_nodes, cluster_capacity, gpus_left
from bdray.cluster.pruning_actor import start_pruner
from bdray.cluster.search import ConditionSearch, said_of
from bdray.cluster.sick_gpus import SickGpus
from bdray.cluster.starting import handlers_kept
from bdray.cluster.trainable import ConditionTrainable
from bdray.gpu import show_gpu
from bdray.store.file_names import JOURNAL, RAY_LOG
from bdray.store.scratch import scratch_folder
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder

_POLL_S, _POLL_REMOTE_S = 0.5, 5.0
"""How often stages whose leaders still run are looked for: on a disk, and where each look is a request."""

AHEAD_OF_AUTOSCALER = 16
"""Trials that wait for an autoscaler, which adds nodes for what it sees waiting."""


def run_tasks(
    job: ClusterJob,
    observer: Observer,
    source: Source | None,
    enlarged: Callable[[str, float], None],
    max_concurrent: int | None,
) -> bool:
    """See `ClusterRun.run`."""
    joining = None if job.requirements is None else Joining(replace(job, tasks=()), job.requirements)
    gpus = SickGpus(gpus_left)
    search = _search(job, source, enlarged, max_concurrent, joining=joining, gpus=gpus)
    callback = _ObserverCallback(observer, search)
    log = job.sweep.local_path(RAY_LOG)
    with (
        scratch_folder() as folder,
        stderr_in(log),
        _terminate_like_interrupt(),
        memory_kills_as_actor_errors(),
        gpus.held(),
        joining or nullcontext(),
    ):
        if job.pruning is not None:
            job = replace(job, pruner=start_pruner(job.pruning))
        trainable = tune.with_parameters(ConditionTrainable, job=replace(job, tasks=()))
        # Both: Ray titles an idle process after the one, a busy process after the other.
        trainable.__name__ = trainable.__qualname__ = PROCESS_NAME
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(search_alg=search, reuse_actors=True),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(folder),
                verbose=0,
                callbacks=[callback],
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError:
            if gpus.none_left is None:
                raise
            raise gpus.none_left from None
    return callback.ended == search.total_samples and (source is None or source.exhausted)


def _search(
    job: ClusterJob,
    source: Source | None,
    enlarged: Callable[[str, float], None],
    max_concurrent: int | None,
    *,
    joining: Joining | None,
    gpus: SickGpus,
) -> ConditionSearch:
    """What hands Tune the tasks, for the cluster as it is now."""
    losses = LostProcesses(lambda condition_id: _journal_bytes(job.sweep, condition_id))
    learns_nothing = source is None or source.exhausted
    avoided = joining.avoided if joining else frozenset[str]

    def largest(gpu: float) -> float:
        off = avoided()
        return most_cpus([NodeResources(node.cpu, node.gpu) for node in able_nodes() if node.node_id not in off], gpu)

    return ConditionSearch(
        job.tasks,
        stage_finished=SweepFolder(job.sweep).has_shared,
        max_concurrent=max_concurrent,
        poll_seconds=_POLL_S if job.sweep.is_local else _POLL_REMOTE_S,
        start_again=losses.start_again,
        source=source,
        largest=largest,
        excused=joining.excuses if joining else _never,
        avoided=avoided,
        gpus=gpus,
        enlarged=enlarged,
        capacity=cluster_capacity(),
        ahead=AHEAD_OF_AUTOSCALER if learns_nothing and has_autoscaler() else 1,
    )


def _never(said: str) -> bool:
    return False


class _ObserverCallback(tune.Callback):
    """Tells the observer what Tune tells its callbacks."""

    def __init__(self, observer: Observer, search: ConditionSearch) -> None:
        self._observer, self._search = observer, search
        self.ended = 0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that bdray never does."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._observer.started(trial.config["condition_id"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended += 1
        for line in trial.last_result["said"]:
            logging.getLogger("bdray").warning(line)
        self._observer.ended(trial.config["condition_id"], trial.last_result["status"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        condition_id, said = trial.config["condition_id"], said_of(trial)
        # The search hears of it first.
        if trial.trial_id in self._search.given_up:
            self.ended += 1
            self._observer.lost(condition_id, in_one_line(said), said)
        else:
            larger, share = self._search.enlarged.get(condition_id), ""
            if larger is not None and memory_exhausted(said):
                share = f"; {larger.cpu:g} CPUs are its share now, so that less runs beside it"
            elif larger is not None and gpu_memory_exhausted(said):
                share = f"; {show_gpu(larger.gpu)} of a GPU is its share now"
            self._observer.restarts(condition_id, f"{in_one_line(said)}{share}")


def _journal_bytes(sweep: Storage, condition_id: str) -> int:
    """How much a condition has reported so far: nothing is reported twice, so this grows with progress alone."""
    return len(SweepFolder(sweep).condition(condition_id).read(JOURNAL) or b"")


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Tune ends a run cleanly on SIGINT but knows nothing of SIGTERM."""
    with handlers_kept():
        signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        yield
