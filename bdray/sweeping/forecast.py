"""The time left and the cost of a sweep: one estimate for everything that shows it.

    seconds of a condition = overhead + rate of its kind of training x pictures that are left
    time left              = max(longest chain, what list scheduling takes of them on so many slots)

A chain is a condition with those whose kept stages it waits for. List scheduling gives each slot that is free the next
condition, which is what the queue does; it ends within one longest condition of sum / slots (Graham 1969). A rate is
taken from the conditions that are most alike: the same model, picture size, recipe, data and strategy; then without the
strategy; and so on up to all.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from bdray.cluster.job import Task
from bdray.record import TrialRecord
from bdray.sweeping.workload import Kind, Work, training_of

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
        self._learnt: dict[str, _Sums] = {}

    def __bool__(self) -> bool:
        return bool(self._levels)

    def knows(self, kind: Kind) -> bool:
        """Whether such a training was timed: this model at this picture size with this recipe."""
        return training_of(kind) in self._levels

    def learn(self, name: str, kind: Kind, *, seconds: float, units: float, overhead: float | None = None) -> None:
        """`name` took so many seconds for so many units, and `overhead` seconds beside where it is over. Replaces what
        was learnt of it before."""
        if units <= 0 and overhead is None:
            return
        old, new = self._learnt.get(name, _Sums()), _Sums(seconds, units, overhead or 0.0, int(overhead is not None))
        self._learnt[name] = new
        for length in range(len(kind) + 1):
            sums = self._levels.setdefault(kind[:length], _Sums())
            for part, value in vars(new).items():
                setattr(sums, part, getattr(sums, part) + value - getattr(old, part))

    def of_unit(self, kind: Kind) -> float:
        """Seconds a unit, from the nearest kind that was timed; 0 where nothing was."""
        sums = self._nearest(kind, "units")
        return sums.seconds / sums.units if sums else 0.0

    def of_condition(self, kind: Kind) -> float:
        """Seconds beside its stages."""
        sums = self._nearest(kind, "count")
        return sums.overhead / sums.count if sums else 0.0

    def _nearest(self, kind: Kind, known: str) -> _Sums | None:
        levels = (self._levels.get(kind[:length]) for length in range(len(kind), -1, -1))
        return next((sums for sums in levels if sums and getattr(sums, known) > _ROUNDING), None)


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

    def slots(self, task: Task) -> float:
        """How many like this one run at once."""
        pairs = ((self.cpus, task.cpu), (self.gpus, task.gpu))
        fit = [math.floor(have / each + _ROUNDING) for have, each in pairs if have and each]
        return max(1, min([*fit, self.most or math.inf]))


@dataclass(frozen=True)
class Spent:
    """What a set of conditions takes: wall time, and what their trials take one by one."""

    wall_s: float
    trial_s: float


@dataclass
class Forecaster:
    """The time that conditions take.

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
        computed = {stage.name: stage.seconds for stage in record.stages if stage.epochs and not stage.reused}
        self.finished.update(stage.fingerprint for stage in work.stages if stage.shared)
        units = sum(stage.units for stage in work.stages if stage.name in computed)
        seconds = sum(computed.values())
        self.rates.learn(record.condition_id, work.kind, seconds=seconds, units=units, overhead=overhead_s(record))

    def spent(self, tasks: Sequence[Task], left: Mapping[str, float] | None = None) -> Spent:
        """What `tasks` take.

        Args:
            tasks: all that are not over, in the order they start.
            left: seconds that those which run already still take.
        """
        left = left or {}
        there_at = dict.fromkeys(self.finished, 0.0)
        takes_of, longest, share = list[float](), 0.0, 0.0
        for task in sorted(tasks, key=lambda task: task.condition_id not in left):
            takes, begins = left.get(task.condition_id), 0.0
            if takes is None:
                takes = self._seconds(task, there_at) + self.gap_s
                begins = max((there_at.get(stage, 0.0) for stage in task.stages), default=0.0)
            for stage in task.stages:
                there_at.setdefault(stage, begins + takes)
            takes_of.append(takes)
            longest, share = max(longest, begins + takes), share + takes / self.capacity.slots(task)
        trial = sum(takes_of)
        slots = [0.0] * max(1, min(len(tasks), round(trial / share) if share else 1))
        for takes in takes_of:
            heapq.heapreplace(slots, slots[0] + takes)
        return Spent(max(longest, *slots), trial)

    def seconds_alone(self, work: Work) -> float:
        """Of a condition that finds no stage computed."""
        return self.rates.of_condition(work.kind) + self.rates.of_unit(work.kind) * work.units

    def _seconds(self, task: Task, there: Collection[str]) -> float:
        work = self.works.get(task.condition_id)
        if work is None:
            return 0.0
        units = sum(stage.units for stage in work.stages if stage.fingerprint not in there)
        return self.rates.of_condition(work.kind) + self.rates.of_unit(work.kind) * units


def overhead_s(record: TrialRecord) -> float | None:
    """What a finished condition took beside its stages. None where it went on after a kill: its stages then took longer
    in all than it did since."""
    stages = sum(stage.seconds for stage in record.stages if not stage.reused)
    overhead = (record.finished_ms - record.started_ms) / 1000 - stages
    return overhead if overhead >= 0 else None
