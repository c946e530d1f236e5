"""What runs, how far it is, and how long all will take: looked up in the files of the conditions."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from bdray.cluster.job import Task
from bdray.condition import Condition
from bdray.errors import StorageError
from bdray.questions import Questions, answer_key
from bdray.record import TrialRecord, now_ms
from bdray.store.journal import read_journal
from bdray.store.records import read_heads, read_record, read_records, with_answers
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.store.sweep_status import RunningCondition, SweepStatus
from bdray.sweeping.forecast import Capacity, Forecaster, Steps
from bdray.sweeping.workload import POISON, SURROGATE, StageWork, Work, training_of, work_of

_ALMOST_OVER = 0.02
"""Of a condition that has taken longer than was expected, so much is taken to be left."""

_GAPS = 101
"""So many of the last gaps between two conditions tell how long one is."""

_SHOWN = 16
"""Running conditions that are shown, and whose journals are read at each look."""


class Watcher:
    """Follows a sweep for everything that shows it. Ray's loop reports starts and ends, which are only noted; `look`
    reads.

    Args:
        conditions: all that are known when it starts.
        tasks: those that are to be run, in their order.
        capacity: what they share, which grows and shrinks where nodes join and leave.
        questions: what their models are asked.
        retested: conditions that have finished before, of which more is computed than the answers to questions.
        clock: seconds since any moment; it cannot be set while the sweep runs.
        wall_ms: Unix time, as the journals have it; not believed where a clock was set, or another machine's differs.
    """

    def __init__(
        self,
        sweep: Storage,
        conditions: Sequence[Condition],
        tasks: Sequence[Task],
        capacity: Callable[[], Capacity],
        *,
        questions: Questions | None = None,
        retested: Collection[str] = (),
        max_batches: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._sweep, self._folder, self._max_batches = sweep, SweepFolder(sweep), max_batches
        self._questions, self._retested = questions or Questions(), frozenset(retested)
        self._clock, self._wall_ms = clock, wall_ms
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        self._conditions: dict[str, Condition] = {}
        self._running: dict[str, _Running] = {}
        self._ended: deque[str] = deque()
        self._free: list[float] = []
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._detectors = frozenset(each.name for each in self._questions.detectors_of("poisoned"))
        self.forecaster, self._capacity = Forecaster({}, capacity(), bool(self._detectors)), capacity
        self._kinds: set[tuple[str, ...]] = set()
        self.expect(conditions, tasks)
        # What an earlier run of this sweep has finished.
        self._before: list[str] = [name for name in self.forecaster.works if name not in self._tasks]

    def expect(self, conditions: Iterable[Condition], tasks: Sequence[Task]) -> None:
        """More conditions, and those of them that are to be run."""
        known = {condition.condition_id: condition for condition in conditions}
        works = {name: work_of(condition, self._max_batches) for name, condition in known.items()}
        names = [task.condition_id for task in tasks] if self._questions.asked else []
        finished = {head.condition_id for head in read_heads(self._sweep, names) if head.status == "finished"}
        with self._lock:
            self.forecaster.only_asked |= finished - self._retested
            self._conditions.update(known if self._questions.detect else {})
            self.forecaster.works.update(works)
            self._tasks.update((task.condition_id, task) for task in tasks)
            self._kinds.update(training_of(work.kind) for work in works.values())

    def started(self, condition_id: str) -> None:
        now = self._clock()
        with self._lock:
            work, task = self.forecaster.works.get(condition_id), self._tasks.get(condition_id)
            if work is not None:
                label = task.label if task and task.label else condition_id
                shown = RunningCondition(condition_id=condition_id, label=label)
                units = {stage.step: stage.units for stage in work.stages}
                self._running[condition_id] = _Running(work, now, now, now, units, shown)
            # The first conditions start their processes too; the gap is what lies between two in the same one. The slot
            # that was freed last is taken: where fewer fit than before, the others stay empty.
            if self._free:
                self._gaps.append(now - self._free.pop())

    def ended(self, condition_id: str, *, again: bool = False) -> None:
        """A condition is over, or (`again`) waits for another process."""
        now = self._clock()
        with self._lock:
            running = self._running.pop(condition_id, None)
            self._free.append(now)
            if running and not again and condition_id in self.forecaster.only_asked:
                self.forecaster.asked_s.append(now - running.began_s)
            if not again:
                self._tasks.pop(condition_id, None)
                self._ended.append(condition_id)

    def look(self) -> None:
        """Read the records of what has ended since the last look, and the journals of what runs.

        Raises:
            StorageError: a record cannot be read now; the next look begins there.
        """
        self.forecaster.capacity = self._capacity()
        self._learn(read_records(self._sweep, self._before) if self._before else [])
        self._before = []
        while self._ended:
            record_of_it = read_record(self._sweep, self._ended[0])
            if record_of_it is not None:
                self._learn([record_of_it])
            self._ended.popleft()
        with self._lock:
            running = dict(self._running)
        for number, (condition_id, before) in enumerate(running.items()):
            try:
                entries, _ = read_journal(self._folder.condition(condition_id)) if number < _SHOWN else ([], 0)
                now = before.looked_at(
                    self._clock(), entries, self._wall_ms(), self.forecaster.finished, self._questions
                )
                now = now.without(self._answered(condition_id, now.shown.then))
            except StorageError:
                continue
            with self._lock:
                if self._running.get(condition_id) is before:
                    self._running[condition_id] = now
            self.forecaster.rates.learn(condition_id, now.work.kind, now.took)

    def _learn(self, records: Sequence[TrialRecord]) -> None:
        for record in with_answers(self._sweep, records) if self._detectors and records else records:
            self.forecaster.learn(record)

    def _answered(self, condition_id: str, then: Collection[str]) -> set[str]:
        """Those of the detectors in `then` that have been asked of the poisoned model, here or by another condition."""
        condition = self._conditions.get(condition_id)
        asked = [each for each in self._questions.detectors_of("poisoned") if each.name in then]
        if condition is None or not asked:
            return set()
        known = self._folder.answers_of(condition.poison_fingerprint)
        # They are asked in turn, and one that failed has left no answer.
        last = max((at for at, each in enumerate(asked, start=1) if answer_key(each, condition) in known), default=0)
        return {each.name for each in asked[:last]} - {each.name for each in asked[last:]}

    def left_s(self) -> float | None:
        """Seconds until all that is known is done; None while too little was timed."""
        with self._lock:
            tasks, running = list(self._tasks.values()), dict(self._running)
            self.forecaster.gap_s = median(self._gaps) if self._gaps else 0.0
        if not self.forecaster.is_ready(tasks):
            return None
        return self.forecaster.spent(tasks, {name: self._left_of(one) for name, one in running.items()}).wall_s

    def _left_of(self, running: _Running) -> float:
        rates, work = self.forecaster.rates, running.work
        if work.condition_id in self.forecaster.only_asked:
            expected = self.forecaster.asked_alone_s
            return max(expected - (self._clock() - running.began_s), _ALMOST_OVER * expected)
        expected = self._asking_left(running) + (0.0 if running.shown.stage else rates.of_condition(work.kind))
        for step, units in running.left.items():
            seconds, done = running.took.get(step, (0.0, 0.0))
            expected += units * (seconds / done if done else rates.of_unit(work.kind, step))
        return max(expected - (self._clock() - running.seen_s), _ALMOST_OVER * expected)

    def _asking_left(self, running: _Running) -> float:
        """What detectors still take: all of them until the poison stage is over, then those that have yet to answer."""
        then, task = running.shown.then, self._tasks.get(running.work.condition_id)
        is_before = running.shown.stage in ("", SURROGATE, POISON) and not then
        part = 1.0 if is_before else len(self._detectors.intersection(then)) / max(1, len(self._detectors))
        return part * self.forecaster.asking_s(task) if task else 0.0

    def sweep_status(self, left_s: float | None) -> SweepStatus:
        """For `bdray status`. `left_s`: as `left_s` has just said."""
        with self._lock:
            running = tuple(one.shown for one in list(self._running.values())[:_SHOWN])
        return SweepStatus(
            phase="running",
            updated_ms=self._wall_ms(),
            running=running,
            left_s=left_s,
            timed=self.timed,
            kinds=len(self._kinds),
        )

    @property
    def timed(self) -> int:
        """Kinds of training of which one was timed."""
        return sum(self.forecaster.rates.knows(kind) for kind in self._kinds)


@dataclass(frozen=True)
class _Running:
    """How far a running condition is.

    Attributes:
        began_s: when it began, by the watcher's clock.
        seen_s, looked_s: when it last reported an epoch (its start where it has not), and when its journal was last
            looked at, by the watcher's clock.
        left: units of what its stages still compute, by step.
        took: seconds and units of what it has computed, by step.
        lines: of the journal at the last look.
        shown: its last epoch, for people.
    """

    work: Work
    began_s: float
    seen_s: float
    looked_s: float
    left: Mapping[str, float]
    shown: RunningCondition
    took: Steps = field(default_factory=dict)
    lines: int = 0

    def looked_at(
        self,
        now_s: float,
        entries: Sequence[dict[str, Any]],
        now_ms: int,
        finished: Collection[str],
        questions: Questions,
    ) -> _Running:
        """By now. `finished`: fingerprints of kept stages that are there, which it loads."""
        seen_s = self.seen_s
        if len(entries) > self.lines:
            # A new line is no older than the last look, whatever clock it carries the time of.
            age_s = (now_ms - entries[-1]["time_ms"]) / 1000
            seen_s = now_s - min(max(0.0, age_s), now_s - self.looked_s)
        left: dict[str, float] = {}
        took: dict[str, tuple[float, float]] = {}
        shown = self.shown
        for number, stage in enumerate(self.work.stages, start=1):
            cost = "cost" if stage.name == "poison" else f"{stage.name}_cost"
            lines = [entry for entry in entries if f"{cost}/stage_seconds" in entry["metrics"]]
            if not lines:
                left[stage.step] = 0.0 if stage.shared and stage.fingerprint in finished else stage.units
                continue
            last = max(lines, key=lambda entry: int(entry["step"]))
            part = min(1.0, last["step"] / stage.epochs) if stage.epochs else 1.0
            took[stage.step] = last["metrics"][f"{cost}/stage_seconds"], part * stage.units
            # What comes before a stage that has begun is over.
            left = {stage.step: (1 - part) * stage.units}
            rate = last["metrics"].get(f"{cost}/images_per_second")
            then = self.shown.then
            if len(entries) > self.lines:
                then = _after(number, self.work.stages, questions, at_once=not self.lines) if part == 1 else ()
            news = {"stage": stage.name, "epoch": last["step"], "epochs": stage.epochs, "images_per_second": rate}
            shown = shown.model_copy(update={**news, "then": then})
        return _Running(self.work, self.began_s, seen_s, now_s, left, shown, took, len(entries))

    def without(self, answered: Collection[str]) -> _Running:
        """Where these detectors have answered."""
        then = tuple(name for name in self.shown.then if name not in answered)
        return replace(self, shown=self.shown.model_copy(update={"then": then})) if answered else self


def _after(done: int, stages: Sequence[StageWork], questions: Questions, *, at_once: bool) -> tuple[str, ...]:
    """What a condition does after so many of its stages, up to the next epoch. `at_once`: they were over at the first
    look, so that what remains is what its models are asked."""
    is_last, is_poisoned = done == len(stages), stages[done - 1].name == POISON
    poisoned = questions.detectors_of("poisoned") if is_poisoned or (is_last and at_once) else ()
    repaired = questions.detectors_of("repaired") if is_last and not is_poisoned else ()
    relearning = ("relearning",) if is_last and questions.evaluate.relearn else ()
    following = [stage.name for stage in stages[done:]]
    first = next((number for number, stage in enumerate(stages[done:], start=1) if stage.trains), len(following))
    asked = [*(each.name for each in poisoned), *relearning, *(each.name for each in repaired)]
    return (*asked, *following[:first])
