"""Unlearning of reversed triggers: fine-tune on pictures that have the trigger found and keep their label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import BeforeValidator, Field

from bdray.detectors.base import Detector, embedded
from bdray.detectors.neural_cleanse import NeuralCleanse, size_indices
from bdray.detectors.tools import DetectorTools
from bdray.gpu import to_device
from bdray.recipes import Finetune
from bdray.repairs.base import REPAIRS, Details, Operation, Repair, RepairStage
from bdray.repairs.tools import CleanData, Tools

if TYPE_CHECKING:
    import torch
    from torch import nn


def _detector(content: Any) -> Detector:
    return embedded({"name": "neural_cleanse", **content} if isinstance(content, dict) else content, NeuralCleanse)


@REPAIRS.register("neural_cleanse")
class NeuralCleanseUnlearning(Repair):
    """Reverse a trigger for every class (the detector `neural_cleanse`); then fine-tune on the clean set, where
    `stamped` of each batch has the trigger of a class that is flagged, with its true label. A model without a flagged
    class stays as it is.
    """

    SOURCE: ClassVar[str] = "Wang et al. 2019 (Neural Cleanse, patching by unlearning)"

    detector: Annotated[NeuralCleanse, BeforeValidator(_detector)] = Field(default_factory=NeuralCleanse)
    """How triggers are reversed: options of the detector."""
    stamped: float = Field(default=0.2, gt=0.0, le=1.0)
    """Part of a batch that has a trigger."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the clean set."""
    lr: float = Field(default=0.01, gt=0.0)
    """Of plain descent with a momentum of 0.9."""
    batch_size: int = Field(default=128, ge=2)
    """Pictures a step."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        return (Operation("unlearn", "unlearnt", self.identity(), operate=self._unlearn),)

    def uses_clean_data(self, finetune: Finetune) -> bool:
        return True

    def _unlearn(self, model: nn.Module, clean: CleanData, tools: Tools) -> Details:
        was_training = model.training
        masks, patterns = self.detector.triggers(model.eval(), clean.images, _detector_tools(model, tools))
        indices = size_indices(masks.double().sum((1, 2, 3)).cpu())
        flagged: list[int] = self.detector.flagged(indices).nonzero().flatten().tolist()
        if flagged:
            self._tune(model.train(), masks[flagged], patterns[flagged], tools)
        model.train(was_training)
        return {"flagged_classes": len(flagged), "flagged": flagged, "largest_index": float(indices.max())}

    def _tune(self, model: nn.Module, masks: torch.Tensor, patterns: torch.Tensor, tools: Tools) -> None:
        """`masks`, `patterns`: of the flagged classes, float32, `F x 1 x S x S` and `F x 3 x S x S`."""
        import torch
        from torch.nn.functional import cross_entropy

        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)
        for _ in tools.steps(self.epochs):
            for pixels, labels in tools.batches(self.batch_size, normalized=False):
                # The order is drawn anew, so the first of a batch are any.
                count = max(1, int(self.stamped * len(labels)))
                drawn = torch.randint(len(masks), (count,), generator=tools.generator)
                which = to_device(drawn, masks.device)
                mask, pattern = masks.index_select(0, which), patterns.index_select(0, which)
                pixels[:count] = pixels[:count] * (1 - mask) + pattern * mask
                with tools.autocast():
                    logits = model(tools.normalize(pixels))
                optimizer.zero_grad()
                cross_entropy(logits.float(), labels).backward()
                optimizer.step()
        optimizer.zero_grad()


def _detector_tools(model: nn.Module, tools: Tools) -> DetectorTools:
    from bdray.models.networks.taps import head_of

    classes = len(cast("torch.Tensor", head_of(model).weight))
    device = tools.clean.images.device
    return DetectorTools(tools.generator, classes, device, tools.normalize, tools.autocast, tools.tick)
