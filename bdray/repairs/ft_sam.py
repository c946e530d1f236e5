"""Fine-tuning with sharpness-aware steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.recipes import Finetune
from bdray.repairs.base import REPAIRS, Repair, RepairStage, Training
from bdray.repairs.objective import Objective

if TYPE_CHECKING:
    import torch
    from torch import nn


@REPAIRS.register("ft_sam")
class SharpnessAwareTuning(Repair):
    """Fine-tune by the gradient at the worst point near the weights, so that large weights shrink.

    Every step moves the weights w by rho * w^2 g / ||w g|| (adaptive SAM, elementwise), takes the gradient there, goes
    back and steps with it. Running statistics follow the first of the two passes. An epoch takes twice as long.
    """

    SOURCE: ClassVar[str] = "Zhu, Wei, Shen, Fan & Wu 2023 (FT-SAM, arXiv 2304.11823); adaptive SAM, Kwon et al. 2021"

    rho: float = Field(default=2.0, gt=0.0)
    """Radius of the neighbourhood, in units of the weights' own size."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        return (Training(finetune, "flatten", "flattened", SharpnessAware(self.rho), self.identity()),)


@dataclass(frozen=True)
class SharpnessAware(Objective):
    """Cross-entropy, by adaptive sharpness-aware steps."""

    rho: float

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, evaluate: Callable[[], torch.Tensor]) -> None:
        import torch

        _differentiate(optimizer, evaluate)
        moved = [value for group in optimizer.param_groups for value in group["params"] if value.grad is not None]
        came = [value.detach().clone() for value in moved]
        with torch.no_grad():
            scaled = torch.stack([(value * value.grad).norm() for value in moved]).norm()
            for value in moved:
                value.add_(value.square() * value.grad * (self.rho / (scaled + 1e-12)))
        with _running_statistics_at_rest(model):
            _differentiate(optimizer, evaluate)
        with torch.no_grad():
            for value, before in zip(moved, came, strict=True):
                value.copy_(before)
        optimizer.step()


def _differentiate(optimizer: torch.optim.Optimizer, evaluate: Callable[[], torch.Tensor]) -> None:
    loss = evaluate()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()


@contextmanager
def _running_statistics_at_rest(model: nn.Module) -> Iterator[None]:
    from torch.nn.modules.batchnorm import _NormBase

    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
