"""Isolation by loss: what is learnt soonest has the lowest loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, TrainingSetDetector
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn


@DETECTORS.register("lowest_loss")
class LowestLoss(TrainingSetDetector):
    """Minus the cross-entropy of each sample with its label as given. Of all samples, `isolated` are flagged, lowest
    loss first: at least two, so that they can be trained on.

    The isolation of anti-backdoor learning. The paper asks a model after some epochs of local gradient ascent, as the
    repair `abl` does; as a detector it is asked of the poisoned model as it is.
    """

    SOURCE: ClassVar[str] = "Li, Lyu, Koren, Lyu, Li & Ma 2021 (ABL, arXiv 2110.11571)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"poisoned set", "labels", "logits only"})

    isolated: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Part of the training set that is flagged: two samples at least."""

    def score(self, model: nn.Module, items: Labelled, tools: DetectorTools) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        logits = tools.outputs(model, items.images).logits.double()
        return -cross_entropy(logits, items.labels, reduction="none")

    def flagged(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        import torch

        flags = torch.zeros(len(scores), dtype=torch.bool)
        flags[scores.argsort(descending=True, stable=True)[: max(2, int(self.isolated * len(scores)))]] = True
        return flags
