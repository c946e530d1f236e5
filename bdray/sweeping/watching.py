"""What runs, how far it is, and how long all will take: looked up in the files of the conditions."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from bdray.cluster.job import Task
from bdray.condition import Condition
from bdray.errors import StorageError
from bdray.store.journal import read_journal
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, now_ms, read_record, read_records
from bdray.store.sweep_status import RunningCondition, SweepStatus
from bdray.sweeping.forecast import Capacity, Forecaster, Under
from bdray.sweeping.workload import Work, training_of, work_of

_GAPS = 101
"""So many of the last gaps between two conditions tell how long one is."""

_SHOWN = 16
"""Running conditions that are told of, and whose journals are read at each look."""


class Watcher:
    """Follows a sweep for whoever shows it. Starts and ends are told from Ray's loop, and only noted; `look` reads.

    Args:
        conditions: all that are known when it starts.
        tasks: those that are to be run, in their order.
        clock: seconds since any moment; nobody sets it while the sweep runs.
        wall_ms: Unix time, as the journals have it; not believed where a clock was set, or another machine's differs.
    """

    def __init__(
        self,
        sweep: Storage,
        conditions: Sequence[Condition],
        tasks: Sequence[Task],
        capacity: Capacity,
        *,
        max_batches: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._sweep, self._folder, self._max_batches = sweep, SweepFolder(sweep), max_batches
        self._clock, self._wall_ms = clock, wall_ms
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        self._running: dict[str, float] = {}
        self._reports: dict[str, _Report] = {}
        self._under: dict[str, Under] = {}
        self._told: dict[str, RunningCondition] = {}
        self._ended: deque[str] = deque()
        self._free: deque[float] = deque()
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self.forecaster = Forecaster({}, capacity)
        self._kinds: set[tuple[str, ...]] = set()
        self.expect(conditions, tasks)
        # What an earlier run of this sweep has finished.
        waiting = {task.condition_id for task in tasks}
        self._before: list[str] = [name for name in self.forecaster.works if name not in waiting]

    def expect(self, conditions: Iterable[Condition], tasks: Iterable[Task]) -> None:
        """More conditions, and those of them that are to be run."""
        works = {condition.condition_id: work_of(condition, self._max_batches) for condition in conditions}
        with self._lock:
            self.forecaster.works.update(works)
            self._tasks.update((task.condition_id, task) for task in tasks)
            self._kinds.update(training_of(work.kind) for work in works.values())

    def started(self, condition_id: str) -> None:
        now = self._clock()
        with self._lock:
            self._running[condition_id] = now
            # The first conditions start their processes too; the gap is what lies between two in the same one.
            freed = self._free.popleft() if self._free else None
            if freed is not None:
                self._gaps.append(now - freed)

    def ended(self, condition_id: str, *, again: bool = False) -> None:
        """A condition is over, or (`again`) waits for another process."""
        now = self._clock()
        with self._lock:
            self._running.pop(condition_id, None)
            self._under.pop(condition_id, None)
            self._told.pop(condition_id, None)
            self._reports.pop(condition_id, None)
            self._free.append(now)
            if not again:
                self._tasks.pop(condition_id, None)
                self._ended.append(condition_id)

    def look(self) -> None:
        """Read the records of what has ended since the last look, and the journals of what runs.

        Raises:
            StorageError: a record cannot be read now; the next look begins there.
        """
        for record in read_records(self._sweep, self._before) if self._before else ():
            self.forecaster.learn(record)
        self._before = []
        while self._ended:
            record_of_it = read_record(self._sweep, self._ended[0])
            if record_of_it is not None:
                self.forecaster.learn(record_of_it)
            self._ended.popleft()
        with self._lock:
            running = dict(list(self._running.items())[:_SHOWN])
        for condition_id, begun in running.items():
            self._look_at(condition_id, begun)

    def _look_at(self, condition_id: str, begun: float) -> None:
        work = self.forecaster.works.get(condition_id)
        if work is None:
            return
        try:
            entries, _ = read_journal(self._folder.condition(condition_id))
        except StorageError:
            entries = []
        with self._lock:
            report = self._reports.get(condition_id, _Report(begun, begun)).looked_at(
                self._clock(), entries, self._wall_ms()
            )
            under, told = under_of(work, entries, begun, report.seen_s)
            if condition_id in self._running:
                self._reports[condition_id] = report
                self._under[condition_id], self._told[condition_id] = under, told

    def left_s(self) -> float | None:
        """Seconds until all that is known is done; None while nothing was timed."""
        with self._lock:
            tasks = list(self._tasks.values())
            running = {name: self._under.get(name, Under(begun, begun)) for name, begun in self._running.items()}
            self.forecaster.gap_s = median(self._gaps) if self._gaps else 0.0
        return self.forecaster.left_s(self._clock(), running, tasks)

    def sweep_status(self, *, total: int, finished: int, failed: int, left_s: float | None) -> SweepStatus:
        """For `bdray status`."""
        with self._lock:
            told = [
                self._told.get(name) or _told(self.forecaster.works[name])
                for name in self._running
                if name in self.forecaster.works
            ]
        return SweepStatus(
            phase="running",
            updated_ms=self._wall_ms(),
            total=total,
            finished=finished,
            failed=failed,
            running=tuple(told[:_SHOWN]),
            left_s=left_s,
            timed=self.timed,
            kinds=len(self._kinds),
        )

    @property
    def timed(self) -> int:
        """Kinds of training of which one was timed."""
        return sum(self.forecaster.rates.knows(kind) for kind in self._kinds)


@dataclass(frozen=True)
class _Report:
    """When a running condition last reported an epoch.

    Attributes:
        seen_s, looked_s: when that was, and when its journal was last looked at, by the watcher's clock.
        lines: of the journal by then.
    """

    seen_s: float
    looked_s: float
    lines: int = 0

    def looked_at(self, now_s: float, entries: Sequence[dict[str, Any]], now_ms: int) -> _Report:
        """By now. A new line is no older than the last look, whatever clock it carries the time of."""
        if len(entries) <= self.lines:
            return replace(self, looked_s=now_s)
        age_s = (now_ms - entries[-1]["time_ms"]) / 1000
        return _Report(now_s - min(max(0.0, age_s), now_s - self.looked_s), now_s, len(entries))


def under_of(
    work: Work, entries: Sequence[dict[str, Any]], begun_s: float, seen_s: float
) -> tuple[Under, RunningCondition]:
    """How far a running condition is by its journal's lines: for the forecast, and for people."""
    under, told, over = Under(begun_s, begun_s), _told(work), set[str]()
    seconds = units = 0.0
    for stage in work.stages:
        cost = "cost" if stage.name == "poison" else f"{stage.name}_cost"
        lines = [entry for entry in entries if f"{cost}/stage_seconds" in entry["metrics"]]
        if not lines:
            continue
        last = max(lines, key=lambda entry: int(entry["step"]))
        part = min(1.0, last["step"] / stage.epochs) if stage.epochs else 1.0
        seconds += last["metrics"][f"{cost}/stage_seconds"]
        units += part * stage.units
        before = work.stages[: work.stages.index(stage) + (part >= 1.0)]
        over = {earlier.name for earlier in before}
        under = Under(begun_s, seen_s, seconds, units, frozenset(over), stage.name, part)
        told = told.model_copy(
            update={
                "stage": stage.name,
                "epoch": last["step"],
                "epochs": stage.epochs,
                "images_per_second": last["metrics"].get(f"{cost}/images_per_second"),
            }
        )
    return under, told


def _told(work: Work) -> RunningCondition:
    return RunningCondition(condition_id=work.condition_id, label=work.label)
