"""Super-fine-tuning: once at a large, once at a small learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from bdray.recipes import Finetune
from bdray.repairs.base import REPAIRS, Repair, RepairStage, Training
from bdray.repairs.recipe import with_options


@REPAIRS.register("super_finetune")
class SuperFineTuning(Repair):
    """Fine-tune twice, each time as `finetune` says but with its own peak learning rate and the schedule `triangular`:
    a large rate to forget the backdoor, then a small one to win back clean accuracy."""

    SOURCE: ClassVar[str] = (
        "Sha, He, Berrang, Humbert & Zhang 2022 (arXiv 2212.09067); one triangle a phase is our choice"
    )

    large_lr: float = Field(default=0.1, gt=0.0)
    """Peak learning rate of the first phase."""
    small_lr: float = Field(default=0.001, gt=0.0)
    """Peak learning rate of the second phase."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        return (
            Training(with_options(finetune, lr=self.large_lr, schedule="triangular"), "forget", "forgetful"),
            Training(with_options(finetune, lr=self.small_lr, schedule="triangular"), "settle", "settled"),
        )
