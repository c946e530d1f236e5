"""`train.compile: auto`: for which trainings the time that `torch.compile` takes is won back.

Decided once for a sweep, from measured steps, like its precision (`bdray.trial.pace`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from bdray.condition import Condition
from bdray.machine import Machine
from bdray.recipes import Resolved
from bdray.trial.measured import Measured, Unmeasured
from bdray.trial.pace import AT_MOST, ROUNDS, TrainingKind, pace_key, stepper

if TYPE_CHECKING:
    from bdray.trial.setup import Experiment

COMPILINGS = "compiling.json"

LEAST_SECONDS = 20.0
"""What compiling takes at least: shorter than that even the smallest network has not been."""


class Compiling(BaseModel):
    """Training images a second without and with `torch.compile`, and the seconds of the step that compiled."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    plain: float = Field(gt=0.0)
    compiled: float = Field(gt=0.0)
    seconds: float = Field(ge=0.0)

    def saved(self, images: float, processes: int) -> float:
        """Seconds that compiling saves `images` of training, of which it takes some in each of the processes."""
        return images * (1 / self.plain - 1 / self.compiled) - self.seconds * processes


MeasureCompiling = Callable[[Machine, Sequence[TrainingKind]], Sequence[Compiling | Unmeasured]]
"""Measures trainings on a kind of machine."""

_TOO_LITTLE = "too little training to try it"


@dataclass(frozen=True)
class CompileDecision:
    """The shapes of training that are compiled (`shape_of`), and why in a few words."""

    shapes: tuple[str, ...]
    why: str


def asks_for_compiling(condition: Condition) -> bool:
    """Whether a condition waits for this decision."""
    return "auto" in (condition.train.compile, condition.finetune.compile)


def shape_of(condition: Condition) -> str:
    """Names what one compilation serves."""
    return pace_key(condition, Machine("", ""), 0)


def decide_compile(
    work: Sequence[TrainingKind],
    machines: Sequence[Machine],
    *,
    threads: int,
    precision: Resolved,
    processes: int,
    kept: Measured[Compiling],
    measure: MeasureCompiling,
) -> CompileDecision:
    """Compile each training of `work` that is done sooner for it, on every one of the `machines`.

    Args:
        processes: how many of them compile each for itself.
    """
    repaying = {shape_of(training.example) for training in work}
    said = []
    for machine in machines:
        keys = [f"{pace_key(training.example, machine, threads)}-{precision}" for training in work]
        wanted = {key: training for key, training in zip(keys, work, strict=True) if training.worth_measuring}
        known, unmeasured = kept.complete(wanted, partial(measure, machine))
        for key, training in zip(keys, work, strict=True):
            one = known.get(key)
            if one is None or one.saved(training.images, processes) <= 0:
                repaying.discard(shape_of(training.example))
            said += [f"{one.compiled / one.plain:.2f} times as fast on {machine.name}"] if one else []
        said += [f"not to be tried on {machine.name}: {one.cause}" for one in unmeasured.values() if one.failed]
    why = f"torch.compile is {', '.join(dict.fromkeys(said))}" if said else _TOO_LITTLE
    return CompileDecision(tuple(sorted(repaying)), why)


def measure_compiling(experiment: Experiment, images: float) -> Compiling | Unmeasured:
    """Time real steps on a real batch without and with `torch.compile`.

    Args:
        images: to be trained on; where they are so few that a try would take too much of their time, there is none.
    """
    step = stepper(experiment)
    step.seconds(experiment.compute)
    plain = min(step.seconds(experiment.compute) for _ in range(ROUNDS))
    if images / step.images * plain * AT_MOST < LEAST_SECONDS:
        return Unmeasured(_TOO_LITTLE, failed=False)
    with step.compiled():
        first = step.seconds(experiment.compute)
        compiled = min(step.seconds(experiment.compute) for _ in range(ROUNDS))
    return Compiling(plain=step.images / plain, compiled=step.images / compiled, seconds=max(0.0, first - compiled))
