"""What Ray's loop asks of a sweep and tells it: tasks as conditions become known, how each ends, and lost processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from rich.markup import escape

from bdray.cluster.failures import MAX_LOST_WITHOUT_PROGRESS, gpu_failure, memory_exhausted
from bdray.cluster.job import Task
from bdray.condition import Condition
from bdray.errors import StorageError
from bdray.record import ErrorRecord, now_ms
from bdray.store.condition_folder import write_failure
from bdray.store.records import read_heads
from bdray.store.stage_cache import Eviction
from bdray.sweeping.display import SweepProgress
from bdray.sweeping.search_loop import SearchLoop
from bdray.sweeping.settings import SweepRun
from bdray.sweeping.tasks import make_tasks, stages_of
from bdray.sweeping.watching import Watcher
from bdray.trial.measurements import Packing


@dataclass
class Arrivals:
    """Tasks for conditions as they become known: the `Source` of the cluster.

    Attributes:
        shares: what `gpu: auto` comes to, by condition; None without GPUs.
        largest: see `make_tasks`.
    """

    run: SweepRun
    shares: dict[str, float] | None
    largest: Callable[[float], float]
    packing: Packing
    watch: Watch | None = None

    def tasks(self, conditions: Sequence[Condition]) -> list[Task]:
        gpus, space = float(self.shares is not None), self.run.space
        return make_tasks(conditions, space, gpus=gpus, shares=self.shares, largest=self.largest)

    def more(self) -> Sequence[Task]:
        search_loop, before = self.run.search_loop, len(self.run.conditions)
        new = search_loop.more()
        if self.watch is not None:
            self.watch.progress.expect(
                len(search_loop.conditions) - before, done=len(search_loop.conditions) - before - len(new)
            )
            self.watch.expect(new)
        if new and self.shares is not None:
            # Nothing is measured now: Ray's loop would wait for it.
            self.shares |= self.packing.shares(new)
        tasks = self.tasks(new)
        if self.watch is not None:
            self.watch.watcher.expect(search_loop.conditions[before:], tasks)
        return tasks

    def enlarged(self, condition_id: str, gpu: float) -> None:
        """So much of a GPU is what others of this condition's kind get from now on, also in other sweeps."""
        for condition in self.run.conditions:
            if condition.condition_id == condition_id and self.run.space.resources_for(condition).gpu == "auto":
                # Worth no more than an error the less for each of its kind.
                with suppress(StorageError):
                    self.packing.enlarge(condition, gpu)

    @property
    def exhausted(self) -> bool:
        return self.run.search_loop.exhausted


@dataclass(frozen=True)
class Watch:
    """Tells the terminal and the stage cache what Ray's loop tells its observer."""

    progress: SweepProgress
    eviction: Eviction
    search_loop: SearchLoop
    watcher: Watcher
    on_failure: Callable[[str, str], None]
    lost_details: dict[str, str] = field(default_factory=dict)

    def started(self, condition_id: str) -> None:
        self.progress.started(condition_id)

    def ended(self, condition_id: str, status: str) -> None:
        self.progress.ended(condition_id, status)
        if status not in ("finished", "pruned"):
            self.on_failure(condition_id, status)
        self.eviction.ended(condition_id)
        self.search_loop.ended(condition_id)

    def restarts(self, condition_id: str, cause: str) -> None:
        self.progress.restarts(condition_id, cause)

    def lost(self, condition_id: str, cause: str, detail: str) -> None:
        self.progress.lost(condition_id, cause)
        self.on_failure(condition_id, cause)
        self.lost_details[condition_id] = detail
        self.eviction.ended(condition_id)
        self.search_loop.ended(condition_id)

    def expect(self, conditions: Sequence[Condition]) -> None:
        """Conditions have become known that are to be run."""
        for condition in conditions:
            self.eviction.expect(condition.condition_id, stages_of(condition))


def record_lost(run: SweepRun, causes: Mapping[str, str], details: Mapping[str, str]) -> None:
    """A trial whose process was lost again and again wrote no record: the driver does it in its place. The record of a
    condition that had finished before stands, and its cause goes into `run.unasked`."""
    finished = {head.condition_id for head in read_heads(run.sweep, list(causes)) if head.status == "finished"}
    for condition in run.left:
        cause = causes.get(condition.condition_id)
        if cause is None:
            continue
        if condition.condition_id in finished:
            run.unasked[condition.condition_id] = cause
            continue
        message = f"its process was lost {MAX_LOST_WITHOUT_PROGRESS} times in a row without progress: {cause}"
        kind = "ProcessLost"
        if memory_exhausted(details[condition.condition_id]):
            kind, message = (
                "OutOfMemory",
                f"{message}, with all CPUs of the largest machine that it fits on as its share",
            )
        if gpu_failure(details[condition.condition_id]):
            kind = "GpuError"
            message = f"it ended so on two GPUs, or twice on one that passed its self-test in between: {cause}"
        error = ErrorRecord(kind=kind, message=message)
        try:
            write_failure(
                run.sweep, condition, error, started_ms=now_ms(), detail=details[condition.condition_id] or cause
            )
        except StorageError as full:
            run.console.print(f"[red]{condition.condition_id}[/red]: {escape(f'{cause}; and no record of it: {full}')}")
