"""Retraining without what a detector flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from bdray.detectors.base import Detector, TrainingSetDetector, embedded
from bdray.detectors.spectral_signatures import SpectralSignatures
from bdray.recipes import Finetune
from bdray.registry import Sight
from bdray.repairs.base import REPAIRS, Among, Repair, RepairStage, Training
from bdray.repairs.recipe import with_options


def _detector(content: Any) -> Detector:
    return embedded(content, TrainingSetDetector)


@REPAIRS.register("filtered")
class Filtered(Repair):
    """Train a fresh network on the poisoned training set without the samples that a detector flags in the poisoned
    model; some see clean pictures too. Batch size, optimizer, augmentation and the like are those of `finetune`.
    """

    SOURCE: ClassVar[str] = "Tran, Li & Madry 2018 (spectral signatures) and Chen et al. 2018 (activation clustering)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"poisoned set", "labels", "weights"})

    detector: Annotated[SerializeAsAny[TrainingSetDetector], BeforeValidator(_detector)] = Field(
        default_factory=SpectralSignatures
    )
    """A detector of training sets, as `{name: ..., option: ...}`."""
    epochs: int = Field(default=30, ge=1)
    """Passes over what is left."""
    lr: float = Field(default=0.1, gt=0.0)
    """Peak learning rate."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        recipe = with_options(finetune, epochs=self.epochs, lr=self.lr, layers="all")
        among = Among(self.detector)
        return (Training(recipe, "retrain", "retrained", data="poisoned", start="fresh", among=among),)

    def uses_clean_data(self, finetune: Finetune) -> bool:
        return "clean share" in self.detector.SEES
