"""What a kind of training costs: seconds for an image, measured on a few real steps, and the bytes of its model.

Needs no torch to plan with; `measure_cost` is what computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from bdray.gpu import is_gpu
from bdray.trial.pace import ROUNDS, stepper

if TYPE_CHECKING:
    from bdray.trial.setup import Experiment

COSTS = "costs.json"

_LONG_S = 5.0
"""A step that takes longer is measured well by one."""


class Cost(BaseModel):
    """What a kind of training was measured to cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image_s: float = Field(gt=0.0)
    """Seconds for a training image, alone on its device."""
    model_bytes: int
    machine: str
    threads: int
    on_gpu: bool


def measure_cost(experiment: Experiment, machine: str, threads: int) -> Cost:
    """Time real steps of the poison stage, as the condition would take them."""
    step = stepper(experiment)
    compute = step.stage.compute
    best = step.seconds(compute)
    if best < _LONG_S:
        # The first one counts only where it is all there is: it also warms up.
        best = min(step.seconds(compute) for _ in range(ROUNDS))
    weights = step.state.model.state_dict().values()
    return Cost(
        image_s=best / step.images,
        model_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        machine=machine,
        threads=threads,
        on_gpu=is_gpu(compute.device),
    )
