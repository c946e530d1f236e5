"""The time left, estimated once for everybody who shows it.

    work (pictures, by kind of training) x rates (learnt from what is finished or runs) -> seconds of each condition
    -> played through the same queue that starts them, on as many slots as there are -> time left

A rate is taken from the conditions that are most alike: the same model, picture size, recipe, data and strategy; then
without the strategy; and so on up to all. What is shared is computed once. The overhead of a condition (loading,
floors of baselines, pictures) and the gap between two of them are learnt beside.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean

from bdray.cluster.job import Task
from bdray.cluster.queue import StageQueue
from bdray.record import TrialRecord
from bdray.sweeping.workload import Kind, StageWork, Work, training_of

_ALMOST_OVER = 0.02
"""Of a condition that has taken longer than was expected, so much is taken to be left."""

_ROUNDING = 1e-9


@dataclass
class _Sums:
    seconds: float = 0.0
    units: float = 0.0
    overhead: float = 0.0
    count: int = 0


class Rates:
    """Seconds for a unit of work, and overhead of a condition, by kind and by every prefix of a kind."""

    def __init__(self) -> None:
        self._levels: dict[Kind, _Sums] = {}

    def __bool__(self) -> bool:
        return bool(self._levels)

    def knows(self, kind: Kind) -> bool:
        """Whether such a training was timed: this model at this picture size with this recipe."""
        return training_of(kind) in self._levels

    def learn(self, kind: Kind, *, seconds: float, units: float, overhead: float | None = None) -> None:
        """So many seconds for so many units; `overhead` of a whole condition, in seconds, where it is over."""
        if units <= 0 and overhead is None:
            return
        for length in range(len(kind) + 1):
            sums = self._levels.setdefault(kind[:length], _Sums())
            sums.seconds += seconds
            sums.units += units
            if overhead is not None:
                sums.overhead += overhead
                sums.count += 1

    def with_more(self, running: Iterable[tuple[Kind, float, float]]) -> Rates:
        """These, and what conditions that still run have shown: kind, seconds, units."""
        rates = Rates()
        rates._levels = {kind: _Sums(**vars(sums)) for kind, sums in self._levels.items()}
        for kind, seconds, units in running:
            rates.learn(kind, seconds=seconds, units=units)
        return rates

    def of_unit(self, kind: Kind) -> float:
        """Seconds a unit, from the nearest kind that was timed; 0 where nothing was."""
        for length in range(len(kind), -1, -1):
            rate = self._rate(kind[:length])
            if rate is not None:
                return rate * (self._of_size(kind) if length == 1 else 1.0)
        return 0.0

    def _rate(self, kind: Kind) -> float | None:
        sums = self._levels.get(kind)
        return sums.seconds / sums.units if sums is not None and sums.units > 0 else None

    def _of_size(self, kind: Kind) -> float:
        """For a model that was not timed at this picture size: what the size means to the models that were."""
        model, size = kind[:2]
        rates = {known: rate for known in self._levels if len(known) == 2 and (rate := self._rate(known))}
        own = [known for known in rates if known[0] == model]
        ratios = [
            rates[other, size] / rates[other, known]
            for _, known in own
            for other, its in rates
            if its == known and other != model and (other, size) in rates
        ]
        return geometric_mean(ratios) if ratios else 1.0

    def of_condition(self, kind: Kind) -> float:
        """Seconds beside its stages."""
        for length in range(len(kind), -1, -1):
            sums = self._levels.get(kind[:length])
            if sums is not None and sums.count:
                return sums.overhead / sums.count
        return 0.0


@dataclass(frozen=True)
class Under:
    """How far a running condition is.

    Attributes:
        begun_s: when it started, by the clock that `Forecaster.left_s` is given.
        seen_s: when it last reported an epoch, by the same clock; its start where it has not.
        seconds, units: what it took for what it has computed of its stages.
        over: names of stages that are finished, however.
        part: of the stage it is in.
        stage: that one; "" before the first epoch.
    """

    begun_s: float
    seen_s: float
    seconds: float = 0.0
    units: float = 0.0
    over: frozenset[str] = frozenset()
    stage: str = ""
    part: float = 0.0


@dataclass(frozen=True)
class Capacity:
    """What conditions share.

    Attributes:
        cpus, gpus: logical ones of the cluster.
        most: conditions at once at most; None: as many as fit.
    """

    cpus: float
    gpus: float = 0.0
    most: int | None = None

    def share(self, task: Task) -> float:
        """The part of everything that a task takes."""
        shares = [task.cpu / self.cpus if self.cpus else 0.0, task.gpu / self.gpus if self.gpus else 0.0]
        return min(1.0, max(*shares, 1 / self.most if self.most else 0.0))


@dataclass(frozen=True)
class Spent:
    """What a set of conditions takes: wall time, and what their trials take one by one."""

    wall_s: float
    trial_s: float


@dataclass
class Forecaster:
    """The time left of a sweep.

    Attributes:
        works: by condition id, of all that are known.
        finished: fingerprints of kept stages that are there.
        gap_s: between the end of a condition and the start of the next in its slot.
    """

    works: dict[str, Work]
    capacity: Capacity
    rates: Rates = field(default_factory=Rates)
    finished: set[str] = field(default_factory=set)
    gap_s: float = 0.0

    def learn(self, record: TrialRecord) -> None:
        """What a finished condition took."""
        work = self.works.get(record.condition_id)
        if work is None or not record.stages:
            return
        computed = {stage.name: stage for stage in record.stages if not stage.reused and stage.last is not None}
        seconds = sum(stage.last.stage_seconds for stage in computed.values() if stage.last)
        units = sum(stage.units for stage in work.stages if stage.name in computed)
        # What went on after a kill took longer in all than since it went on.
        overhead = (record.finished_ms - record.started_ms) / 1000 - seconds
        self.finished.update(stage.fingerprint for stage in work.stages if stage.shared)
        self.rates.learn(work.kind, seconds=seconds, units=units, overhead=overhead if overhead >= 0 else None)

    def left_s(self, now_s: float, running: Mapping[str, Under], tasks: Sequence[Task]) -> float | None:
        """Seconds until all is done; None while nothing was timed.

        Args:
            now_s: the clock of `running`.
            running: by condition id.
            tasks: all that are not over, those that run among them, in the order they start.
        """
        known = {name: under for name, under in running.items() if name in self.works}
        shown = [(self.works[name].kind, under.seconds, under.units) for name, under in known.items() if under.units]
        rates = self.rates.with_more(shown)
        if not rates:
            return None
        left = {name: self._left_of(self.works[name], under, rates, now_s) for name, under in known.items()}
        return self.spent(tasks, rates, left).wall_s

    def spent(
        self, tasks: Sequence[Task], rates: Rates | None = None, left: Mapping[str, float] | None = None
    ) -> Spent:
        """What `tasks` take, played through the queue that starts them.

        Args:
            left: seconds that those which run already still take; they stand in no queue.
        """
        rates, left = rates or self.rates, left or {}
        ordered = sorted(tasks, key=lambda task: task.condition_id not in left)
        done = set(self.finished)
        queue = StageQueue(ordered, done.__contains__)
        ends: list[tuple[float, int, Task]] = []
        now = wall = trial = 0.0
        free, number, held = 1.0, 0, None
        while True:
            while (task := held or queue.pop()) is not None:
                share = self.capacity.share(task)
                if share > free + _ROUNDING and ends:
                    held = task
                    break
                held, free, number = None, free - share, number + 1
                takes = left.get(task.condition_id)
                takes = self._seconds(task, rates, done) + self.gap_s if takes is None else takes
                trial += takes
                heapq.heappush(ends, (now + takes, number, task))
            if not ends:
                return Spent(wall, trial)
            now, _, task = heapq.heappop(ends)
            wall, free = max(wall, now), free + self.capacity.share(task)
            done.update(task.stages)
            queue.ended(task)

    def seconds_alone(self, work: Work) -> float:
        """Of a condition that finds no stage computed."""
        return self.rates.of_condition(work.kind) + self.rates.of_unit(work.kind) * work.units

    def _seconds(self, task: Task, rates: Rates, done: Collection[str]) -> float:
        work = self.works.get(task.condition_id)
        if work is None:
            return 0.0
        units = sum(stage.units for stage in work.stages if stage.fingerprint not in done)
        return rates.of_condition(work.kind) + rates.of_unit(work.kind) * units

    def _left_of(self, work: Work, under: Under, rates: Rates, now_s: float) -> float:
        rate = under.seconds / under.units if under.units else rates.of_unit(work.kind)
        units = sum(self._part_left(stage, under) * stage.units for stage in work.stages)
        expected = rate * units + (0.0 if under.stage or under.over else rates.of_condition(work.kind))
        return max(expected - (now_s - under.seen_s), _ALMOST_OVER * expected)

    def _part_left(self, stage: StageWork, under: Under) -> float:
        if stage.name in under.over or (stage.shared and stage.fingerprint in self.finished):
            return 0.0
        return 1.0 - under.part if stage.name == under.stage else 1.0
