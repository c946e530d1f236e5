"""The time left, over a sweep whose conditions cost very different times, with a clock of its own."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_up import record, stage

from bdray.cluster.job import Task
from bdray.cluster.queue import StageQueue
from bdray.condition import Condition
from bdray.questions import answer_key
from bdray.record import Answer, EpochRecord
from bdray.space import SearchSpace, load_space
from bdray.store.condition_folder import ConditionFolder
from bdray.store.journal import Journal
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.forecast import Capacity, Forecaster, beside_stages
from bdray.sweeping.tasks import make_tasks
from bdray.sweeping.watching import Watcher
from bdray.sweeping.workload import StageWork, Work, work_of

LONG = (pytest.mark.system, pytest.mark.long)

SPACE = """\
name: long
seeds: [0, 1, 2, 3, 4, 5, 6]
fixed: {train: {epochs: 10}, finetune: {epochs: 4}}
parameters:
  data.name: {values: [cifar10, flowers]}
  data.image_size: {value: 128, when: {data.name: flowers}}
  model.name: {values: [resnet8, resnet50, nasnet]}
  trigger.name: {values: [patch, blend, sinusoid]}
  poison.rate: {values: [0.01, 0.03, 0.05]}
  regularizer.name: {values: [none, contrastive, manifold_mixup, logit_squeezing, soft_nearest_neighbors]}
"""

IMAGE_MS = {"resnet8": 0.2, "resnet50": 2.0, "nasnet": 60.0}
"""The truth: milliseconds for a training image of 32 x 32. Nobody tells the forecast."""
SLOWER = {
    "none": 1.0,
    "contrastive": 1.1,
    "manifold_mixup": 1.05,
    "logit_squeezing": 1.3,
    "soft_nearest_neighbors": 1.6,
}
NOISE = 0.1
"""Standard deviation of the logarithm of a condition's time."""

OVERHEAD_S, GAP_S = 3.0, 0.4


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> SearchSpace:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return load_space(path)


def stage_seconds(condition: Condition, work: Work, luck: float) -> list[float]:
    """The truth for each stage; large pictures take less than their area says."""
    size = (condition.data.image_size / 32) ** -0.4
    rate = IMAGE_MS[condition.model.name] / 1000 * SLOWER[condition.regularizer.name] * size
    return [rate * luck * stage.units for stage in work.stages]


class Simulation:
    """Plays a sweep: the clock jumps from one end of a condition to the next, as the same queue starts them. What
    runs has written its journal up to each moment, and what is over its record."""

    def __init__(self, space: SearchSpace, slots: int, folder: Path) -> None:
        self.conditions = {condition.condition_id: condition for condition in space.conditions()}
        self.tasks = make_tasks(list(self.conditions.values()), space, gpus=0.0)
        draw = random.Random(slots)
        works = {name: work_of(condition) for name, condition in self.conditions.items()}
        self.seconds = {
            name: stage_seconds(condition, works[name], draw.lognormvariate(0.0, NOISE))
            for name, condition in self.conditions.items()
        }
        self.works, self.slots, self.now = works, slots, 1_000_000.0
        self.sweep = Storage.open(folder)
        SweepFolder(self.sweep).write_info(SweepInfo("long", "long"))
        self.watcher = Watcher(
            self.sweep,
            space.conditions(),
            self.tasks,
            lambda: Capacity(float(slots)),
            clock=lambda: self.now,
            wall_ms=lambda: int(1000 * self.now),
        )

    def moments(self, looked_at: int) -> Iterator[tuple[float, float | None, float]]:
        """(share of the conditions that is over, forecast, moment), and at last the end."""
        total, done = len(self.tasks), 0
        queue = StageQueue(self.tasks, lambda _: False)
        ends: list[tuple[float, str, Task]] = []
        begun: dict[str, float] = {}
        next_look = 0.0
        while True:
            while len(begun) < self.slots and (task := queue.pop()) is not None:
                gap = GAP_S if done else 0.0
                self.now += gap if self.slots == 1 else 0.0
                self.watcher.started(task.condition_id)
                begun[task.condition_id] = self.now
                takes = OVERHEAD_S + sum(self.seconds[task.condition_id])
                heapq.heappush(ends, (self.now + takes, task.condition_id, task))
            if not ends:
                yield 1.0, None, self.now
                return
            if done / total >= next_look:
                next_look = done / total + 1 / looked_at
                for name, since in begun.items():
                    self.write_journal(name, since)
                self.watcher.look()
                yield done / total, self.watcher.left_s(), self.now
            self.now, name, task = heapq.heappop(ends)
            self.write_record(name, begun.pop(name))
            done += 1
            self.watcher.ended(name)
            queue.ended(task)

    def epochs(self, stage: StageWork, seconds: float, since: float) -> Iterator[EpochRecord]:
        for epoch in range(1, stage.epochs + 1):
            passed = seconds * epoch / stage.epochs
            yield EpochRecord(
                epoch=epoch,
                images=1000,
                seconds=seconds / stage.epochs,
                stage_seconds=passed,
                finished_ms=int(1000 * (since + passed)),
            )

    def stages(self, name: str, begun: float) -> Iterator[tuple[StageWork, list[EpochRecord]]]:
        since = begun + OVERHEAD_S
        for part, seconds in zip(self.works[name].stages, self.seconds[name], strict=True):
            yield part, list(self.epochs(part, seconds, since))
            since += seconds

    def write_journal(self, name: str, begun: float) -> None:
        journal = Journal(ConditionFolder(self.sweep, name))
        for part, epochs in self.stages(name, begun):
            journal.add(part.name, part.name, [e for e in epochs if e.finished_ms <= 1000 * self.now])

    def write_record(self, name: str, begun: float) -> None:
        one, times = self.conditions[name], {"started_ms": int(1000 * begun), "finished_ms": int(1000 * self.now)}
        stages = (
            stage(*epochs, name=part.name, fingerprint=part.fingerprint) for part, epochs in self.stages(name, begun)
        )
        folder = ConditionFolder(self.sweep, name)
        folder.write_condition(one)
        folder.write_record(record(one, *stages, **times))


@pytest.mark.parametrize("slots", [pytest.param(1, marks=LONG), pytest.param(2, marks=LONG), 16])
def test_the_time_left_is_within_a_quarter_of_the_truth(slots: int, space: SearchSpace, tmp_path: Path) -> None:
    simulation = Simulation(space, slots, tmp_path)
    assert len(simulation.tasks) == 1890
    every = [sum(seconds) for seconds in simulation.seconds.values()]
    assert max(every) / min(every) > 300
    *seen, (_, _, end) = simulation.moments(looked_at=30)
    errors = {share: left / (end - now) - 1 for share, left, now in seen if share >= 0.05 and left is not None}
    assert len(errors) >= 27
    assert max(map(abs, errors.values())) <= 0.25, errors


REPAIRS = """\
name: repairs
seeds: [0, 1, 2]
fixed: {data: {name: digits}, model: resnet8, train: {epochs: 4}, finetune: {epochs: 2}}
parameters:
  trigger.name: {values: [patch, blend]}
  repair.name: {values: [anp, finetune, i_bau, clp]}
detect: [strip, teco]
baselines: true
"""
STEP_S = {"poison": 40.0, "anp/prune": 470.0, "finetune/finetune": 5.0, "i_bau/unlearn": 500.0, "clp/prune": 0.2}
"""The truth: seconds of each step, whatever its pictures."""
ASKING_S, BESIDE_S = {"strip": 200.0, "teco": 900.0}, 2.0


@pytest.mark.parametrize(("result", "expected"), [("poisoned", (5.0, 100.0)), ("repaired", (105.0, None))])
def test_only_what_is_asked_of_a_shared_model_is_asked_once(result: str, expected: tuple[float, float | None]) -> None:
    """Found in a second look: detectors of repaired models, which every condition asks, were expected of none."""
    answers = (Answer(key="k", detector={}, result=result, seconds=100.0),)
    stages = [
        stage(EpochRecord(epoch=1, images=1, seconds=10.0, stage_seconds=10.0), name=name)
        for name in ("poison", "finetune")
    ]
    assert beside_stages(record(None, *stages, answers=answers, started_ms=0, finished_ms=125_000)) == expected


@pytest.mark.parametrize(("took", "rest"), [(0.0, 125.0), (60.0, 65.0), (None, None)])
def test_a_surrogate_is_not_what_a_condition_takes_beside_its_stages(took: float | None, rest: float | None) -> None:
    """None: a record of before says that there was one, and not how long it took."""
    last = EpochRecord(epoch=1, images=1, seconds=10.0, stage_seconds=10.0)
    known = {"environment": {"surrogate": "natural training"}, "surrogate_seconds": took}
    assert beside_stages(record(None, stage(last), started_ms=0, finished_ms=135_000, **known)) == (rest, None)


def test_what_a_surrogate_took_is_learnt() -> None:
    content = {"data": "digits", "model": "resnet8", "trigger": "patch"}
    poison = {
        "strategy": "clean_label",
        "perturbation": "pgd",
        "surrogate": {"training": "adversarial", "seed": "other"},
    }
    one, other = (Condition.parse({**content, "poison": poison, "seed": seed}) for seed in (0, 1))
    works = {each.condition_id: work_of(each) for each in (one, other)}
    forecaster = Forecaster(works, Capacity(1.0))
    stages = [
        stage(
            EpochRecord(epoch=1, images=1, seconds=10.0, stage_seconds=10.0),
            name=each.name,
            fingerprint=each.fingerprint,
        )
        for each in one.stages
    ]
    times = {"started_ms": 0, "finished_ms": 1000 * (500 + 10 * len(stages) + 5)}
    environment = {"surrogate": "adversarial training"}
    forecaster.learn(record(one, *stages, surrogate_seconds=500.0, environment=environment, **times))
    task = Task(other.condition_id, "", ())
    assert forecaster.spent([task]).trial_s == pytest.approx(500 + 10 * len(stages) + 5)


def test_what_repairs_and_detectors_take_is_known_apart(tmp_path: Path) -> None:
    """Found: repairs that take seconds or minutes for as many pictures had one rate, and what detectors had taken was
    expected of every condition: 2 h 41 min for 45 minutes."""
    path = tmp_path / "space.yaml"
    path.write_text(REPAIRS)
    space = load_space(path)
    conditions = {each.condition_id: each for each in space.conditions()}
    tasks = make_tasks(list(conditions.values()), space, gpus=0.0)
    works = {name: work_of(each) for name, each in conditions.items()}
    forecaster = Forecaster(works, Capacity(1.0), asks=True)
    there: set[str] = set()
    truth = {}
    for task in tasks:
        condition, work = conditions[task.condition_id], works[task.condition_id]
        is_first = condition.poison_fingerprint not in there
        there.add(condition.poison_fingerprint)
        steps = [STEP_S[each.step] for each in work.stages if is_first or each.step != "poison"]
        truth[task.condition_id] = sum(steps) + BESIDE_S + is_first * sum(ASKING_S.values())
        if condition.seed == 0:
            answers = tuple(
                Answer(key=answer_key(each, condition), detector={}, result="poisoned", seconds=ASKING_S[each.name])
                for each in space.questions.detectors_of("poisoned")
            )
            stages = [
                stage(
                    EpochRecord(epoch=1, images=1, seconds=STEP_S[each.step], stage_seconds=STEP_S[each.step]),
                    name=each.name,
                    fingerprint=each.fingerprint,
                    reused=each.step == "poison" and not is_first,
                )
                for each in work.stages
            ]
            times = {"started_ms": 0, "finished_ms": round(1000 * truth[task.condition_id])}
            forecaster.learn(record(condition, *stages, answers=answers, **times))
    left = [task for task in tasks if conditions[task.condition_id].seed != 0]
    assert len(left) == 2 * (8 + 4)
    assert forecaster.spent(left).trial_s == pytest.approx(sum(truth[task.condition_id] for task in left), rel=1e-6)
