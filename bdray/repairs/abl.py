"""Anti-backdoor learning: train so that the backdoor shows, set aside what shows it, unlearn that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.detectors.lowest_loss import LowestLoss
from bdray.recipes import Finetune
from bdray.registry import Sight
from bdray.repairs.base import REPAIRS, Among, Repair, RepairStage, Training
from bdray.repairs.objective import Batch, Objective
from bdray.repairs.recipe import with_options

if TYPE_CHECKING:
    import torch


@REPAIRS.register("abl")
class AntiBackdoorLearning(Repair):
    """Train a fresh network on the poisoned set, whose loss is turned to ascent wherever it falls below `gamma`; the
    part `isolated` of all samples with the lowest loss is then set aside. Go on with the others, then raise the loss of
    those set aside. No clean picture is needed.

    The first loss is sign(l - gamma) l for the mean cross-entropy l of a batch (local gradient ascent, equation 3 of
    the paper); the last is -l (the second term of equation 4). Settings but for epochs and rates are those of
    `finetune`. The first training alone takes as long as a poison stage of so many epochs.
    """

    SOURCE: ClassVar[str] = "Li, Lyu, Koren, Lyu, Li & Ma 2021 (ABL, arXiv 2110.11571)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"poisoned set", "labels", "weights"})

    gamma: float = Field(default=0.5, ge=0.0)
    """Loss that training does not go below, in nats."""
    isolated: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Part of the training set that is set aside: two samples at least."""
    isolation_epochs: int = Field(default=20, ge=1)
    """Of the first training."""
    tuning_epochs: int = Field(default=60, ge=1)
    """Of the training on what is left."""
    unlearning_epochs: int = Field(default=20, ge=1)
    """Of the ascent on what was set aside."""
    lr: float = Field(default=0.1, gt=0.0)
    """Peak learning rate of the first two trainings."""
    unlearning_lr: float = Field(default=5e-4, gt=0.0)
    """Learning rate of the ascent, constant."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        first = with_options(finetune, epochs=self.isolation_epochs, lr=self.lr, layers="all")
        then = with_options(finetune, epochs=self.tuning_epochs, lr=self.lr, layers="all")
        last = with_options(finetune, epochs=self.unlearning_epochs, lr=self.unlearning_lr, schedule="constant")
        lowest = LowestLoss(isolated=self.isolated)
        others = Among(lowest, of="isolating", part=1 - self.isolated)
        aside = Among(lowest, flagged=True, of="isolating", part=self.isolated)
        gamma = {"name": self.name, "gamma": self.gamma}
        return (
            Training(first, "isolate", "isolating", LocalAscent(self.gamma), gamma, "poisoned", "fresh"),
            Training(then, "go_on", "purified", data="poisoned", among=others),
            Training(last, "unlearn", "unlearnt", Ascent(), {"name": self.name}, "poisoned", among=aside),
        )

    def uses_clean_data(self, finetune: Finetune) -> bool:
        return False


@dataclass(frozen=True)
class LocalAscent(Objective):
    """Cross-entropy, turned to ascent below `gamma`."""

    gamma: float

    def loss(self, batch: Batch) -> torch.Tensor:
        return (batch.cross_entropy.detach() - self.gamma).sign() * batch.cross_entropy


class Ascent(Objective):
    """Minus cross-entropy."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return -batch.cross_entropy
