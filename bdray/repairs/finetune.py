"""Clean fine-tuning, and leaving the model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bdray.recipes import Finetune
from bdray.registry import Sight
from bdray.repairs.base import REPAIRS, Repair, RepairStage, Training


@REPAIRS.register("finetune")
class FineTuning(Repair):
    """Retrain on the clean set, as `finetune` says, without a regularizer."""

    SOURCE: ClassVar[str] = "Truong et al. 2020 (the abstract's clean retraining); settings are our choice"

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        return (Training(finetune),)


@REPAIRS.register("none")
class NoRepair(Repair):
    """Leave the poisoned model as it is."""

    SOURCE: ClassVar[str] = "the control"
    SEES: ClassVar[frozenset[Sight]] = frozenset()

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        return ()
