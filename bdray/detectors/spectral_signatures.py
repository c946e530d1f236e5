"""Spectral signatures: poisoned samples stand out along the direction in which a class's features vary most."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, TrainingSetDetector
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn


@DETECTORS.register("spectral_signatures")
class SpectralSignatures(TrainingSetDetector):
    """The squared projection of a sample's penultimate features, less their mean over its class, on the first right
    singular vector of that class. Of each class, 1.5 times `expected` of its samples are flagged, highest first: at
    least one.
    """

    SOURCE: ClassVar[str] = "Tran, Li & Madry 2018 (spectral signatures)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"poisoned set", "labels", "features"})

    expected: float = Field(default=0.1, gt=0.0, le=0.5)
    """Part of a class that is thought to be poisoned at most: the paper's epsilon."""

    def score(self, model: nn.Module, items: Labelled, tools: DetectorTools) -> torch.Tensor:
        import torch

        features = tools.outputs(model, items.images).features.double()
        scores = torch.zeros(len(features), dtype=torch.float64)
        for members in classes_of(items.labels):
            centred = features[members] - features[members].mean(0)
            first = torch.linalg.svd(centred, full_matrices=False).Vh[0]
            scores[members] = (centred @ first).square()
        return scores

    def flagged(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        import torch

        flags = torch.zeros(len(scores), dtype=torch.bool)
        for members in classes_of(labels):
            order = scores[members].argsort(descending=True, stable=True)
            flags[members[order[: max(1, int(1.5 * self.expected * len(members)))]]] = True
        return flags


def classes_of(labels: torch.Tensor) -> list[torch.Tensor]:
    """Positions of the samples of each label that occurs: int64."""
    return [(labels == label).nonzero().flatten() for label in labels.unique()]
