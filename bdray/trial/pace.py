"""`precision: auto`: what a few real steps take in float32 and in bfloat16, and which of the two is trained in.

How fast bfloat16 is cannot be told from a processor's flags: with AVX-512's it was 2.5 times as fast as float32 on one
machine and slower on another. So it is measured, once for a kind of machine and of training, and kept in the storage.
One decision holds for all that is compared with each other: conditions of a sweep that differ in their model differ in
nothing else. It is no part of any id; every stage records what it was computed in.

This module needs no torch to plan; `measure_pace` is what computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import metadata
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from bdray.condition import Condition, digest
from bdray.data.base import DataSet
from bdray.machine import Machine
from bdray.recipes import Optimization, Resolved
from bdray.repairs.base import Training
from bdray.trial.measured import Measured, Unmeasured

if TYPE_CHECKING:
    import torch

    from bdray.training.device import Compute
    from bdray.training.loop import Stage, StageState
    from bdray.trial.setup import Experiment

PACES = "pace.json"

GAIN = 1.1
"""bfloat16 rounds more: it must be so many times as fast as float32 to be worth that (our choice)."""

ROUNDS = 4
"""Measured steps in each format, in turns, after one that is not counted. The fastest is taken: a step is held up by
whatever else runs on the machine and hurried by nothing."""

AT_MOST = 0.02
"""Of a training's steps that may be spent on measuring; what would take more is trained in float32, unmeasured."""

ASSUMED_IMAGES = 50_000
"""Of a data set whose size is not known before it is loaded."""


class Pace(BaseModel):
    """Training images a second of a kind of trial on a kind of machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    float32: float = Field(gt=0.0)
    bfloat16: float = Field(gt=0.0)


Paces = Measured[Pace]
Measure = Callable[[Machine, Sequence[Condition]], Sequence[Pace | Unmeasured]]
"""Measures conditions on a kind of machine."""


@dataclass(frozen=True)
class Decision:
    """What `precision: auto` comes to, and why in a few words."""

    precision: Resolved
    why: str


@dataclass(frozen=True)
class TrainingKind:
    """Conditions that take equally long for an image.

    Attributes:
        example: one of them.
        images: that all of them train on, over all epochs; a stage that several share counts once.
    """

    example: Condition
    images: float

    @property
    def worth_measuring(self) -> bool:
        """Whether the steps of a measurement are few beside those of the training."""
        return self.images * AT_MOST >= 2 * (1 + ROUNDS) * self.example.train.batch_size


def is_auto(condition: Condition) -> bool:
    """Whether anything in a condition waits for a decision."""
    return "auto" in (condition.train.precision, condition.finetune.precision)


def pace_key(condition: Condition, machine: Machine, threads: int) -> str:
    """Names all that the pace depends on: conditions with the same key share one measurement.

    `threads`: of the CPU, which do not matter to a GPU.
    """
    return digest(
        {
            "image_size": condition.data.image_size,
            "model": condition.model.identity(),
            "regularizer": condition.regularizer.identity(),
            "train": {name: getattr(condition.train, name) for name in ("batch_size", "optimizer")},
            "layout": "channels_last",
            "machine": [machine.name, machine.bfloat16],
            "threads": 0 if machine.gpu else threads,
            "torch": metadata.version("torch"),
        }
    )


def trainings(
    conditions: Sequence[Condition],
    max_batches: int | None = None,
    waiting: Callable[[Condition], bool] = is_auto,
) -> list[TrainingKind]:
    """The kinds of training among those of `conditions` that wait for a decision.

    Args:
        max_batches: of an epoch, in a rehearsal.
        waiting: whether a condition does.
    """
    nowhere = Machine("", "")
    examples: dict[str, Condition] = {}
    images: dict[str, float] = {}
    seen: set[str] = set()
    for condition in filter(waiting, conditions):
        key = pace_key(condition, nowhere, 0)
        examples.setdefault(key, condition)
        new = [count for fingerprint, count in stage_images(condition, max_batches) if fingerprint not in seen]
        seen.update(stage.fingerprint for stage in condition.stages)
        images[key] = images.get(key, 0.0) + sum(new)
    return [TrainingKind(example, images[key]) for key, example in examples.items()]


@lru_cache(maxsize=64)
def training_set_size(data: DataSet) -> int:
    """Training images before `train_limit`; `ASSUMED_IMAGES` where that is not known. Remembered: a folder of pictures
    is looked through."""
    sizes = data.train_sizes()
    return sum(sizes) if sizes else ASSUMED_IMAGES


def stage_images(condition: Condition, max_batches: int | None) -> Iterator[tuple[str, float]]:
    """Fingerprint of each stage that trains, and the images it trains on over all epochs."""
    known, limit = training_set_size(condition.data), condition.data.train_limit
    available = min(known, limit) if limit else known

    def images(recipe: Optimization, epochs: int, part: float) -> float:
        most = max_batches * recipe.batch_size if max_batches else available
        return epochs * min(available * part, most)

    poison, *repair = condition.stages
    yield poison.fingerprint, images(condition.train, condition.train.epochs, 1 - condition.held_out_fraction)
    for planned, step in zip(repair, condition.repair_stages, strict=True):
        if isinstance(step, Training):
            clean = step.data == "clean"
            part = condition.clean_fraction if clean else 1 - condition.held_out_fraction
            part *= step.among.part if step.among else 1.0
            yield planned.fingerprint, images(step.recipe, step.recipe.epochs, part)


def decide_precision(
    work: Sequence[TrainingKind], machines: Sequence[Machine], threads: int, kept: Paces, measure: Measure
) -> Decision:
    """What all conditions of `work` are trained in, on whichever of the `machines` they land.

    What was never measured is measured now and kept.
    """
    for machine in machines:
        if not machine.bfloat16:
            return Decision("float32", f"{machine.name} has no bfloat16 arithmetic")
    if not work:
        return Decision("float32", "nothing is left to train")
    paces = {}
    for machine in machines:
        keys = [pace_key(training.example, machine, threads) for training in work]
        wanted = {key: one.example for key, one in zip(keys, work, strict=True) if one.worth_measuring}
        known, failed = kept.complete(wanted, partial(measure, machine))
        paces[machine.name] = [(t.images, known[key]) for key, t in zip(keys, work, strict=True) if key in known]
        if not paces[machine.name]:
            causes = "; ".join(dict.fromkeys(one.cause for one in failed.values()))
            problem = f"bfloat16 could not be measured on {machine.name}: {causes}"
            return Decision("float32", problem if failed else "too little training to measure")
    return faster(paces)


def faster(paces: Mapping[str, Sequence[tuple[float, Pace]]]) -> Decision:
    """bfloat16 where it makes all that is to be trained at least `GAIN` times as fast on every machine.

    Args:
        paces: by machine, for each kind of training the images to be trained on and its pace.
    """
    gains = {
        name: sum(images / pace.float32 for images, pace in of) / sum(images / pace.bfloat16 for images, pace in of)
        for name, of in paces.items()
    }
    said = ", ".join(f"{gain:.2f} times as fast on {name}" for name, gain in gains.items())
    return Decision("bfloat16" if min(gains.values()) >= GAIN else "float32", f"bfloat16 is {said}")


@dataclass(frozen=True)
class Stepper:
    """Takes real training steps on one real batch and says how long they take. Leaves all random streams as they were.

    Attributes:
        images: of the batch.
    """

    stage: Stage
    state: StageState
    batch: tuple[torch.Tensor, torch.Tensor]

    @property
    def images(self) -> int:
        return len(self.batch[1])

    def seconds(self, compute: Compute) -> float:
        """Of one step, computed like this."""
        from bdray.training.augmentation import augment
        from bdray.training.device import forked_generators
        from bdray.training.loop import StepGenerators, train_step

        stage = replace(self.stage, compute=compute)
        generators = StepGenerators.of(stage, 0)
        with forked_generators(compute.device):
            started = time.perf_counter()
            images, labels = self.batch
            images = augment(images, stage.augmentation, generators.augment)
            # The sums are read: until they are there, nothing is finished.
            train_step(stage, self.state, images, labels, generators).tolist()
            return time.perf_counter() - started

    def compiled(self) -> AbstractContextManager[None]:
        """Inside, steps are compiled."""
        from bdray.training.compilation import CompiledParts

        return CompiledParts(self.state.model).active()


def stepper(experiment: Experiment) -> Stepper:
    """Steps of the poison stage, at a learning rate of 0: no weights grow out of range."""
    import torch

    from bdray.training.batches import batches

    stage = replace(experiment.untouched_stage(), lr=0.0)
    (batch,) = batches(stage.source, [torch.arange(len(stage.source))], stage.compute.device)
    return Stepper(stage, stage.start(experiment.build_model().train()), batch)


def measure_pace(experiment: Experiment) -> Pace:
    """Time steps in float32 and in bfloat16, in turns."""
    from bdray.training.device import Compute

    step = stepper(experiment)
    computes = [Compute(experiment.compute.device, bfloat16) for bfloat16 in (False, True)]
    best = [float("inf")] * 2
    for compute in computes:
        step.seconds(compute)
    for _ in range(ROUNDS):
        best = [min(known, step.seconds(compute)) for known, compute in zip(best, computes, strict=True)]
        if best[1] > 2 * best[0]:
            break  # No further round will turn that around.
    return Pace(float32=step.images / best[0], bfloat16=step.images / best[1])
