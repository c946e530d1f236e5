"""The time left and the cost of a sweep: one estimate for everything that shows it.

    seconds of a condition = overhead + asking + sum over stages of rate x pictures that are left
    time left              = max(longest chain, what list scheduling takes of them on so many slots)

Asking is what detectors take, where no other condition has asked them of the same model. A chain is a condition with
those whose kept stages or answers it waits for. List scheduling gives each slot that is free the next condition, which
is what the queue does; it ends within one longest condition of sum / slots (Graham 1969). A rate is that of the same
step (the poison stage, `anp/prune`) in the conditions that are most alike: the same model, picture size, recipe, data
and strategy; then without the strategy; and so on. A step that was not timed with this model is guessed from the poison
stage.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from bdray.cluster.job import Task
from bdray.record import TrialRecord
from bdray.store.file_names import answer_name
from bdray.sweeping.workload import POISON, SURROGATE, Kind, StageWork, Work, training_of

_ROUNDING = 1e-9

_ANY, _OVERHEAD, _ASKING = "any step", "overhead", "asking"


@dataclass
class _Sum:
    seconds: float = 0.0
    count: float = 0.0


Steps = Mapping[str, tuple[float, float]]
"""Seconds and units of work by step (`StageWork.step`)."""


class Rates:
    """Seconds for a unit of work by step, and what a condition takes beside; each by kind and by every prefix of a
    kind."""

    def __init__(self) -> None:
        self._sums: dict[Kind, _Sum] = {}
        self._learnt: dict[str, list[tuple[str, float, float]]] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    @property
    def has_ended(self) -> bool:
        """Whether what a condition takes beside its stages is known of one."""
        return (_OVERHEAD,) in self._sums

    def knows(self, kind: Kind) -> bool:
        """Whether such a training was timed: this model at this picture size with this recipe."""
        return (_ANY, *training_of(kind)) in self._sums

    def learn(
        self, name: str, kind: Kind, steps: Steps, *, overhead: float | None = None, asking: float | None = None
    ) -> None:
        """`name` took so many seconds for so many units of each step; where it is over, `overhead` seconds beside, and
        `asking` for detectors, where it asked any. Replaces what was learnt of it before."""
        timed = [(what, *took) for step, took in steps.items() if took[1] > 0 for what in (step, _ANY)]
        new = timed + [
            (what, took, 1.0) for what, took in ((_OVERHEAD, overhead), (_ASKING, asking)) if took is not None
        ]
        for sign, known in ((-1, self._learnt.get(name, [])), (1, new)):
            for what, seconds, count in known:
                for length in range(len(kind) + 1):
                    total = self._sums.setdefault((what, *kind[:length]), _Sum())
                    total.seconds += sign * seconds
                    total.count += sign * count
        self._learnt[name] = new

    def of_unit(self, kind: Kind, step: str) -> float:
        """Seconds a unit, from what is nearest of all that was timed; 0 where nothing was."""
        found = (self._near(what, kind, least) for least in (1, 0) for what in (step, POISON))
        return next((mean for mean in found if mean is not None), self._near(_ANY, kind) or 0.0)

    def of_condition(self, kind: Kind) -> float:
        """Seconds beside its stages and detectors."""
        return self._near(_OVERHEAD, kind) or 0.0

    def of_asking(self, kind: Kind) -> float:
        """Seconds of all detectors together."""
        return self._near(_ASKING, kind) or 0.0

    def _near(self, what: str, kind: Kind, least: int = 0) -> float | None:
        """Of the nearest kind that agrees in its first `least` parts at least."""
        sums = (self._sums.get((what, *kind[:length])) for length in range(len(kind), least - 1, -1))
        return next((one.seconds / one.count for one in sums if one and one.count > _ROUNDING), None)


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
        asks: whether poisoned models are asked by detectors.
        finished: fingerprints of kept stages that are there, and names of answers.
        only_asked: conditions that have finished before: questions are all that is left of them.
        asked_s: what those of them took that are over, by the clock.
        gap_s: between the end of a condition and the start of the next in its slot.
    """

    works: dict[str, Work]
    capacity: Capacity
    asks: bool = False
    rates: Rates = field(default_factory=Rates)
    finished: set[str] = field(default_factory=set)
    only_asked: set[str] = field(default_factory=set)
    asked_s: list[float] = field(default_factory=list)
    gap_s: float = 0.0

    def is_ready(self, tasks: Iterable[Task]) -> bool:
        """Whether it can tell what these take: something was timed, and of detectors, which write no journal, a whole
        condition."""
        asked = {task.condition_id in self.only_asked for task in tasks}
        trains = bool(self.rates) and (self.rates.has_ended or not self.asks)
        return (trains or False not in asked) and (bool(self.asked_s) or True not in asked)

    @property
    def asked_alone_s(self) -> float:
        """Seconds of a condition that is only asked."""
        return fmean(self.asked_s) if self.asked_s else 0.0

    def learn(self, record: TrialRecord) -> None:
        """What a finished condition took."""
        work = self.works.get(record.condition_id)
        if work is None or not record.stages:
            return
        computed = {stage.name: stage.seconds for stage in record.stages if stage.epochs and not stage.reused}
        computed |= {SURROGATE: record.surrogate_seconds} if record.surrogate_seconds else {}
        self.finished.update(stage.fingerprint for stage in work.stages if stage.shared)
        self.finished.update(answer_name(record.stages[0].fingerprint, answer.key) for answer in record.answers)
        steps = {stage.step: (computed[stage.name], stage.units) for stage in work.stages if stage.name in computed}
        overhead, asking = beside_stages(record)
        self.rates.learn(record.condition_id, work.kind, steps, overhead=overhead, asking=asking)

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
                begins = max((there_at.get(each, 0.0) for each in task.shared), default=0.0)
            for each in task.shared:
                there_at.setdefault(each, begins + takes)
            takes_of.append(takes)
            longest, share = max(longest, begins + takes), share + takes / self.capacity.slots(task)
        trial = sum(takes_of)
        slots = [0.0] * max(1, min(len(tasks), round(trial / share) if share else 1))
        for takes in takes_of:
            heapq.heapreplace(slots, slots[0] + takes)
        return Spent(max(longest, *slots), trial)

    def seconds_alone(self, work: Work) -> float:
        """Of a condition that finds no stage computed and no answer."""
        return self.rates.of_condition(work.kind) + self.seconds_of(work.kind, work.stages) + self._asking(work, ())

    def seconds_of(self, kind: Kind, stages: Sequence[StageWork]) -> float:
        """Of whole stages."""
        return sum(stage.units * self.rates.of_unit(kind, stage.step) for stage in stages)

    def asking_s(self, task: Task) -> float:
        """What detectors will take, as far as it is known now."""
        work = self.works.get(task.condition_id)
        return self._asking(work, task.answers) if work else 0.0

    def _asking(self, work: Work, answers: Sequence[str], there: Collection[str] | None = None) -> float:
        there = self.finished if there is None else there
        is_answered = bool(answers) and all(answer in there for answer in answers)
        return self.rates.of_asking(work.kind) if self.asks and not is_answered else 0.0

    def _seconds(self, task: Task, there: Collection[str]) -> float:
        work = self.works.get(task.condition_id)
        if work is None or task.condition_id in self.only_asked:
            return 0.0 if work is None else self.asked_alone_s
        stages = [stage for stage in work.stages if stage.fingerprint not in there]
        beside = self.rates.of_condition(work.kind) + self._asking(work, task.answers, there)
        return beside + self.seconds_of(work.kind, stages)


def beside_stages(record: TrialRecord) -> tuple[float | None, float | None]:
    """What a finished condition took beside its stages: seconds of its own, with detectors of its repaired model, and
    of the detectors that it asked of the poisoned one. None where it asked none, and both where that is not known: it
    went on after a kill, so that its stages took longer in all than it did since, or is of an older version, which did
    not say what a surrogate took.

    Conditions that share a model share its answers, and hold how long each took: who took less than that read them.
    """
    if SURROGATE in record.environment and record.surrogate_seconds is None:
        return None, None
    stages = sum(stage.seconds for stage in record.stages if not stage.reused) + (record.surrogate_seconds or 0.0)
    beside = (record.finished_ms - record.started_ms) / 1000 - stages
    asking = sum(answer.seconds for answer in record.answers if answer.result == "poisoned")
    if beside < 0:
        return None, None
    return (beside - asking, asking) if 0 < asking <= beside else (beside, None)
