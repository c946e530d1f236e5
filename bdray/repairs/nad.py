"""Neural attention distillation: a fine-tuned copy teaches the poisoned model where to look."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.errors import ConditionError
from bdray.recipes import Finetune
from bdray.repairs.base import REPAIRS, Repair, RepairStage, Training
from bdray.repairs.objective import Batch, Objective

if TYPE_CHECKING:
    import torch
    from torch import nn


@REPAIRS.register("nad")
class NeuralAttentionDistillation(Repair):
    """Fine-tune the poisoned model: that is the teacher. Then fine-tune the poisoned model once more, as its student.

    The student's loss is cross-entropy + beta * the sum over the network's stages of the mean squared difference of
    both attention maps. A map is the sum over channels of squared activations, scaled to length 1 in every image. Both
    trainings follow `finetune`; paper and authors' code weigh the first of three stages by 500.
    """

    SOURCE: ClassVar[str] = (
        "Li, Lyu, Koren, Lyu, Li & Ma 2021 (NAD, arXiv 2101.05930); one weight for all is our choice"
    )

    beta: float = Field(default=1000.0, ge=0.0)
    """Weight of the difference of attention maps, at every stage of the network."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        distill = AttentionDistillation(self.beta)
        return (
            Training(finetune, "teach", "teacher"),
            Training(finetune, "distill", "distilled", distill, self.identity(), start="poisoned"),
        )


@dataclass(frozen=True)
class AttentionDistillation(Objective):
    """See `NeuralAttentionDistillation`. The state is the teacher."""

    beta: float

    def capture(self, model: nn.Module) -> Sequence[str]:
        from bdray.models.networks.taps import taps_of

        points = tuple(taps_of(model).points)
        if not points:
            raise ConditionError("repair.name", "nad compares maps at the network's mixing points; this one has none")
        return points

    def begin(self, model: nn.Module, before: nn.Module, generator: torch.Generator) -> nn.Module:
        return copy.deepcopy(before).eval().requires_grad_(False)

    def loss(self, batch: Batch) -> torch.Tensor:
        import torch

        from bdray.models.networks.taps import forward_outputs

        assert batch.state is not None
        student = batch.outputs.hidden
        with torch.no_grad(), batch.autocast():
            teacher = forward_outputs(batch.state, batch.images, capture=tuple(student)).hidden
        apart = [attention_distance(student[point], teacher[point]) for point in student]
        return batch.cross_entropy + self.beta * torch.stack(apart).sum()


def attention_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two attention maps, a float32 number. Both `N x C x H x W`.

    Raises:
        ConditionError: the activations are no maps.
    """
    from torch.nn.functional import mse_loss

    return mse_loss(attention_map(student), attention_map(teacher))


def attention_map(activations: torch.Tensor) -> torch.Tensor:
    """Sum of squares over channels, of length 1 in every image: float32, `N x HW`."""
    from torch.nn.functional import normalize

    if activations.ndim != 4:
        shape = " x ".join(map(str, activations.shape[1:]))
        raise ConditionError("repair.name", f"nad needs maps of channels, height and width; here they are {shape}")
    return normalize(activations.float().square().sum(1).flatten(1), dim=1)
