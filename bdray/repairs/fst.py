"""Feature shift tuning: fine-tune away from a head that is thrown away first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from bdray.recipes import Finetune
from bdray.repairs.base import REPAIRS, Repair, RepairStage, Training
from bdray.repairs.objective import Batch, Objective
from bdray.repairs.recipe import with_options

if TYPE_CHECKING:
    import torch
    from torch import nn


@REPAIRS.register("fst")
class FeatureShiftTuning(Repair):
    """Draw the head anew, then fine-tune all layers while the head is pushed away from the poisoned one.

    The loss is cross-entropy + alpha * <head, poisoned head>; after every step the head is scaled to the norm of the
    poisoned one. The first head is uniform in +-1/sqrt(features), as the authors' code draws it.
    """

    SOURCE: ClassVar[str] = "Min, Qin, Shen & Cheng 2023 (FST, arXiv 2310.01875)"

    alpha: float = Field(default=0.2, ge=0.0)
    """Weight of the inner product of both heads; 0 leaves a new head of the old norm."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        recipe = with_options(finetune, layers="all")
        return (Training(recipe, "shift", "shifted", FeatureShift(self.alpha), self.identity()),)


@dataclass(frozen=True)
class FeatureShift(Objective):
    """See `FeatureShiftTuning`. The state holds the poisoned head's weights."""

    alpha: float

    def begin(self, model: nn.Module, before: nn.Module, generator: torch.Generator) -> nn.Module:
        import torch
        from torch import nn

        weight, state = _head_weight(model), nn.Module()
        state.register_buffer("poisoned", weight.detach().clone())
        bound = weight.shape[1] ** -0.5
        with torch.no_grad():
            for values in _head(model).parameters():
                values.copy_(torch.empty(values.shape).uniform_(-bound, bound, generator=generator))
        return state

    def loss(self, batch: Batch) -> torch.Tensor:
        return batch.cross_entropy + self.alpha * (_head_weight(batch.model) * _poisoned(batch.state)).sum()

    def after_step(self, model: nn.Module, state: nn.Module | None) -> None:
        weight = _head_weight(model)
        weight.mul_(_poisoned(state).norm() / weight.norm())


def _head(model: nn.Module) -> nn.Module:
    from bdray.models.networks.taps import head_of

    return head_of(model)


def _head_weight(model: nn.Module) -> torch.Tensor:
    return cast("torch.Tensor", _head(model).weight)


def _poisoned(state: nn.Module | None) -> torch.Tensor:
    assert state is not None
    return cast("torch.Tensor", state.poisoned)
