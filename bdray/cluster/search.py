"""Which condition runs next: one Tune trial each, made only when there is room for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Experiment, Trial
from ray.tune.search.search_algorithm import SearchAlgorithm
from ray.util.placement_group import NODE_ID_LABEL_KEY

from bdray.cluster.failures import gpu_failure, gpu_memory_exhausted, memory_exhausted
from bdray.cluster.job import Source, Task
from bdray.cluster.node_resources import NodeResources
from bdray.cluster.queue import StageQueue
from bdray.cluster.sick_gpus import SickGpus
from bdray.gpu import round_gpu


class ConditionSearch(SearchAlgorithm):
    """Hands conditions to Tune one by one, as a `StageQueue` lets them go.

    Args:
        tasks: in the order they should start.
        stage_finished: whether the storage holds the stage with this fingerprint, or the answer of this name.
        max_concurrent: trials alive at once.
        poll_seconds: see `StageQueue`.
        start_again: whether a condition that has just lost its process gets another one. Tune's own retries leave out a
            process that dies while it is reset for the next trial, so they are not used.
        source: of more tasks.
        largest: CPUs of the largest node there is now that has so much of GPUs: up to there a condition for which the
            memory of its machine was not enough gets twice its share, so that fewer run beside it. One for which the
            memory of its part of a GPU was not enough gets twice that part, up to a whole one, and so do all of its
            kind that start later.
        excused: whether a lost process is not its condition's fault, by what Ray says of it.
        avoided: ids of the nodes that new trials are kept off.
        gpus: which of them get no more trials.
        capacity: what the cluster has, all nodes together.
        enlarged: is told of a condition that gets a larger part of a GPU, and which.
        ahead: so many trials wait at most beyond what fits into that: for them the queue, or a search that learns, has
            said too early what is next; but an autoscaler goes by what waits.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        stage_finished: Callable[[str], bool],
        *,
        max_concurrent: int | None = None,
        poll_seconds: float = 0.5,
        start_again: Callable[[str], bool] = lambda condition_id: False,
        source: Source | None = None,
        largest: Callable[[float], float] = lambda gpu: math.inf,
        excused: Callable[[str], bool] = lambda said: False,
        avoided: Callable[[], Collection[str]] = frozenset,
        gpus: SickGpus | None = None,
        capacity: Callable[[], NodeResources] = lambda: NodeResources(math.inf, math.inf),
        ahead: int = 1,
        enlarged: Callable[[str, float], None] = lambda condition_id, gpu: None,
    ) -> None:
        self._queue, self._max_concurrent = StageQueue(tasks, stage_finished, poll_seconds=poll_seconds), max_concurrent
        self._start_again, self._source = start_again, source
        self._largest, self._excused, self._avoided = largest, excused, avoided
        self._gpus, self._capacity, self._ahead = gpus or SickGpus(), capacity, ahead
        self._told = enlarged
        self._alive: dict[str, Task] = {}
        self._trials: dict[str, Trial] = {}
        self.enlarged: dict[str, Task] = {}
        """The conditions that were given more than they had asked for."""
        self._starts: Counter[str] = Counter()
        self._least: dict[str, float] = {}
        """What the kinds of task need of a GPU whose memory was not enough."""
        self._total = len(tasks)
        self.given_up: set[str] = set()
        """Trials whose process was lost and whose condition is not started again."""
        self._experiment: Experiment | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a sweep continues from its records, never from Tune's state."""
        return {}

    @property
    def total_samples(self) -> int:
        return self._total

    def add_configurations(self, experiments: Any) -> None:
        """Called once by Tune with the experiment that every trial belongs to."""
        (self._experiment,) = experiments if isinstance(experiments, list) else [experiments]

    def next_trial(self) -> Trial | None:
        if self._max_concurrent is not None and len(self._alive) >= self._max_concurrent:
            return None
        if self._waiting() >= self._ahead:
            return None
        task = self._queue.pop() or self._arrived()
        if task is None:
            # One that runs may still be lost, and then start again.
            if self._queue.empty and not self._alive and (self._source is None or self._source.exhausted):
                self.set_finished()
            return None
        task = replace(task, gpu=max(task.gpu, self._least[task.kind])) if task.kind in self._least else task
        self._starts[task.condition_id] += 1
        trial = self._trial(task)
        self._alive[trial.trial_id], self._trials[trial.trial_id] = task, trial
        return trial

    def _waiting(self) -> int:
        """How many of those that are alive do not fit beside those before them."""
        waiting, left = 0, self._capacity()
        for task in self._alive.values():
            if left.holds(task):
                left = NodeResources(left.cpu - task.cpu, left.gpu - task.gpu)
            else:
                waiting += 1
        return waiting

    def _arrived(self) -> Task | None:
        """A task that was not known before. What is asked for as late as this is chosen with most results known."""
        tasks = self._source.more() if self._source else ()
        self._total += len(tasks)
        self._queue.add(tasks)
        return self._queue.pop() if tasks else None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        task, trial = self._alive.pop(trial_id, None), self._trials.pop(trial_id, None)
        if task is None or trial is None:
            return
        if error and self._goes_on(task, said_of(trial)):
            return
        if error:
            self.given_up.add(trial_id)
        self._queue.ended(task)

    def _goes_on(self, task: Task, said: str) -> bool:
        """A process has just been lost: whether its condition is in the queue again."""
        if (larger := self._enlarged(task, said)) is not None:
            self.enlarged[task.condition_id] = larger
            if larger.gpu > task.gpu:
                self._told(task.condition_id, larger.gpu)
                if task.kind:
                    self._least[task.kind] = max(larger.gpu, self._least.get(task.kind, 0.0))
            self._queue.put_back(larger)
            return True
        if (loss := gpu_failure(said)) is not None:
            again = not self._gpus.is_at_fault(task.condition_id, loss)
        else:
            again = self._excused(said) or self._start_again(task.condition_id)
        if again:
            # After others where it was the GPU's: another condition tells more about that one.
            self._queue.put_back(task, last=loss is not None)
        return again

    def _enlarged(self, task: Task, said: str) -> Task | None:
        """With twice of what was not enough, up to a whole device; None where that is no remedy. Its threads remain
        what they were, and so do the bits."""
        if memory_exhausted(said) and task.cpu < (largest := self._largest(task.gpu)):
            return replace(task, cpu=min(2 * task.cpu, largest))
        if gpu_memory_exhausted(said) and 0 < task.gpu < 1:
            return replace(task, gpu=round_gpu(2 * task.gpu))
        return None

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        """Nothing is decided on intermediate results."""

    def _trial(self, task: Task) -> Trial:
        assert self._experiment is not None
        start = self._starts[task.condition_id]
        name = task.condition_id if start == 1 else f"{task.condition_id}_{start}"
        share = {"CPU": task.cpu, **({"GPU": task.gpu} if task.gpu else {})}
        return _ConditionTrial(
            self._experiment.run_identifier,
            config={
                "condition_id": task.condition_id,
                "task": task,
                "avoided_gpus": tuple(self._gpus.given_up) if task.gpu else (),
            },
            trial_id=name,
            experiment_tag=name,
            placement_group_factory=PlacementGroupFactory([share], **_elsewhere(self._avoided())),
            storage=self._experiment.storage,
        )

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Nothing, as in `__getstate__`."""

    def restore_from_dir(self, dirpath: str) -> None:
        """Nothing, as nothing is saved."""

    def has_checkpoint(self, dirpath: str) -> bool:
        return False


def _elsewhere(avoided: Collection[str]) -> dict[str, Any]:
    """What a placement group is given so that it stays off these nodes: Ray labels each with its id."""
    return {"bundle_label_selector": [{NODE_ID_LABEL_KEY: f"!in({','.join(sorted(avoided))})"}]} if avoided else {}


def said_of(trial: Trial) -> str:
    """What Tune has written down about the end of a trial."""
    path = trial.error_file if trial.run_metadata.error_filename else None
    return Path(path).read_text().strip() if path and Path(path).exists() else ""


class _ConditionTrial(Trial):
    """A trial whose state Tune need not write down: that takes 3 ms a trial at the end, for no restore."""

    def get_json_state(self) -> tuple[str, str]:
        return "{}", "{}"
