"""Shared adversarial unlearning: fine-tune until what fools the poisoned model no longer fools this one alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.recipes import Finetune
from bdray.repairs.base import REPAIRS, Repair, RepairStage, Training
from bdray.repairs.objective import Batch, Objective

if TYPE_CHECKING:
    import torch
    from torch import nn

    Logits = Callable[[torch.Tensor], torch.Tensor]


@REPAIRS.register("sau")
class SharedAdversarialUnlearning(Repair):
    """Fine-tune, as `finetune` says, with changed pictures that poisoned model and this one err on alike: what the
    poisoned model takes them for, this one must not.

    In every step a change of at most `bound` of each value is found by `ascents` steps along the sign of the gradient
    of `fooling` times the cross-entropy of both models on pictures that do not fool them yet, less the Jensen-Shannon
    divergence of both on those that they do not err on alike (equation 9 of the paper). The loss is cross-entropy of
    clean pictures + `weight` times the mean of -log(1 - p), where p is what this model gives the class that a changed
    picture fools the poisoned model into (equation 8). Changes are sought in evaluation mode; then clean and changed
    pictures go through the network as one batch in training mode.
    """

    SOURCE: ClassVar[str] = (
        "Wei, Zhang, Zha & Wu 2023 (SAU, arXiv 2307.10562); batch statistics as their code with `--train_mode`"
    )
    # In the first, changed pictures were seen in evaluation mode and clean ones in training mode, as in neither mode of
    # the authors' code (`docs/references.md`).
    VERSION: ClassVar[int] = 2
    USES_LABELS: ClassVar[bool] = True

    weight: float = Field(default=1.0, ge=0.0)
    """Of what is shared, beside cross-entropy (`lambda` in the paper)."""
    bound: float = Field(default=0.2, gt=0.0)
    """Largest change of a value, in values from 0 to 1; every change begins there."""
    ascents: int = Field(default=5, ge=1)
    """Steps of the change."""
    step: float = Field(default=0.2, gt=0.0)
    """Size of each."""
    fooling: float = Field(default=0.01, ge=0.0)
    """Weight of fooling either model, beside fooling both alike (`beta` in the paper)."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        objective = SharedAdversarial(self.weight, self.bound, self.ascents, self.step, self.fooling)
        return (Training(finetune, "unlearn", "unlearnt", objective, self.identity()),)


@dataclass(frozen=True)
class SharedAdversarial(Objective):
    """See `SharedAdversarialUnlearning`. The state is the poisoned model."""

    weight: float
    bound: float
    ascents: int
    step_size: float
    fooling: float

    def begin(self, model: nn.Module, before: nn.Module, generator: torch.Generator) -> nn.Module:
        return copy.deepcopy(before).eval().requires_grad_(False)

    def loss(self, batch: Batch) -> torch.Tensor:
        assert batch.state is not None
        batch.model.eval()
        own, poisoned = (partial(_logits, batch, network) for network in (batch.model, batch.state))
        change = self.change(own, poisoned, batch.images, batch.labels)
        batch.model.train()
        cross_entropy, changed = batch.beside(_moved(batch, change))
        shared = shared_risk(changed, poisoned(change), poisoned(change * 0).argmax(1), batch.labels)
        return cross_entropy + self.weight * shared

    def change(self, own: Logits, poisoned: Logits, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What is added to each picture, of values from 0 to 1: float32, `N x 3 x S x S`, within the bound.

        Args:
            own, poisoned: what both networks make of the pictures with a change.
        """
        import torch

        nothing = torch.zeros_like(images)
        with torch.no_grad():
            took, took_poisoned = own(nothing).argmax(1), poisoned(nothing).argmax(1)
        change = nothing + self.bound
        for _ in range(self.ascents):
            change.requires_grad_()
            loss = fooling_loss(own(change), poisoned(change), took, took_poisoned, labels, fooling=self.fooling)
            (downhill,) = torch.autograd.grad(loss, change)
            change = (change.detach() - self.step_size * downhill.sign()).clamp(-self.bound, self.bound)
        return change.detach()


def _logits(batch: Batch, network: nn.Module, change: torch.Tensor) -> torch.Tensor:
    """Of the batch's pictures with a change: float32, `N x K`."""
    with batch.autocast():
        seen: torch.Tensor = network(_moved(batch, change))
    return seen.float()


def _moved(batch: Batch, change: torch.Tensor) -> torch.Tensor:
    """The batch's pictures with what is added before the normalisation, which is linear: float32, `N x 3 x S x S`."""
    return batch.images + (batch.normalize(change) - batch.normalize(change.detach() * 0))


def fooling_loss(
    own: torch.Tensor,
    poisoned: torch.Tensor,
    took: torch.Tensor,
    took_poisoned: torch.Tensor,
    labels: torch.Tensor,
    *,
    fooling: float,
) -> torch.Tensor:
    """What a change makes small, a float32 number: pictures that do not fool a network yet keep its cross-entropy low,
    and those that both networks do not err on alike keep their answers apart.

    Args:
        own, poisoned: logits of both networks for changed pictures, `N x K`.
        took, took_poisoned: what both take the pictures for as they are, int64, `N`.
    """
    from torch.nn.functional import cross_entropy

    is_own, is_poisoned = own.argmax(1), poisoned.argmax(1)
    fooled, fooled_poisoned = is_own != took, is_poisoned != took_poisoned
    alike = fooled & fooled_poisoned & (is_own == is_poisoned)
    still = cross_entropy(own, labels, reduction="none").masked_fill(fooled, 0.0)
    still = still + cross_entropy(poisoned, labels, reduction="none").masked_fill(fooled_poisoned, 0.0)
    # Below, answers are alike and have no gradient (as in the authors' code).
    sure = [logits.log_softmax(1).clamp(min=math.log(1e-8)) for logits in (own, poisoned)]
    apart = jensen_shannon(*sure).masked_fill(alike, 0.0)
    return apart.mean() - fooling * still.mean() / 2


def jensen_shannon(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The divergence of distributions, in nats: float32, `N`. Both are given by their logarithms, `N x K`."""
    import torch

    middle = torch.logaddexp(first, second) - math.log(2)
    return 0.5 * (first.exp() * (first - middle) + second.exp() * (second - middle)).sum(1)


def shared_risk(
    own: torch.Tensor, poisoned: torch.Tensor, took_poisoned: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The mean of -log(1 - p) over the pictures (0 where the poisoned network is not fooled), a float32 number; below
    p = 0.001 without a gradient.

    Args:
        own, poisoned: logits of both networks for changed pictures, `N x K`.
        took_poisoned: what the poisoned one takes them for unchanged, int64, `N`.
    """
    fooled_into = poisoned.argmax(1)
    counts = (fooled_into != labels) & (fooled_into != took_poisoned)
    others = own.scatter(1, fooled_into[:, None], -math.inf).logsumexp(1) - own.logsumexp(1)
    return -others.clamp(max=math.log1p(-1e-3)).masked_fill(~counts, 0.0).mean()
