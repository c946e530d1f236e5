"""Contrastive losses on the penultimate features: over pairs (Hadsell 2006), and supervised (Khosla 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bdray.regularizers.base import REGULARIZERS, Regularizer
from bdray.regularizers.numerics import in_full_precision, normalized, pairwise_distances, positive_pairs

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.models.networks.taps import Outputs


def contrastive_loss(features: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """Hadsell et al. 2006, equation 4, as the mean over all pairs `i < j` of l2-normalised features.

    With `D = ||f_i - f_j||`, a pair of one label costs `D^2 / 2`, any other `max(0, margin - D)^2 / 2`.

    Args:
        features: `N x D` (or `N x ...`, flattened), any float type; normalised here, in float32, or in float64 where
            they are. A zero vector stays zero and gets no gradient.
        labels: int64, `N`.
        margin: distance from which pairs of different labels cost nothing; distances lie in [0, 2].

    Returns:
        A scalar; 0 where there is no pair. Identical features have zero gradient.
    """
    import torch

    distances = pairwise_distances(normalized(in_full_precision(features)))
    alike = labels[:, None] == labels[None, :]
    costs = torch.where(alike, distances, (margin - distances).clamp(min=0.0)).square() / 2
    pairs = max(len(labels) * (len(labels) - 1) // 2, 1)
    return costs.triu(diagonal=1).sum() / pairs


def supervised_contrastive_loss(features: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Khosla et al. 2020, equation 2 (the sum outside the logarithm), on l2-normalised features.

    The mean, over the samples that have another one of their label, of
    `-1/|P(i)| sum_p log(exp(z_i.z_p / T) / sum_{a != i} exp(z_i.z_a / T))`.

    Args:
        features: `N x D` (or `N x ...`, flattened), any float type; normalised here, in float32, or in float64 where
            they are. A zero vector stays zero and gets no gradient.
        labels: int64, `N`.
        temperature: `T > 0`.

    Returns:
        A scalar; 0 (with zero gradient) where no two samples share a label.
    """
    import torch

    with torch.autocast(features.device.type, enabled=False):
        directions = normalized(in_full_precision(features))
        similarities = directions @ directions.T / temperature
    positive, itself = positive_pairs(labels)
    log_shares = similarities - similarities.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    counts = positive.sum(dim=1)
    losses = -log_shares.masked_fill(~positive, 0.0).sum(dim=1) / counts.clamp(min=1)
    return losses.sum() / (counts > 0).sum().clamp(min=1)


@REGULARIZERS.register("contrastive")
class Contrastive(Regularizer):
    """`weight` times a contrastive loss on the penultimate features."""

    SOURCE: ClassVar[str] = "Hadsell et al. 2006; Khosla et al. 2020, arXiv 2004.11362; the defaults are our choice"
    USES_LABELS: ClassVar[bool] = True

    weight: float = Field(default=0.1, ge=0.0)
    """Factor of the penalty."""
    loss: Literal["pairwise", "supervised"] = "pairwise"
    """`pairwise` is Hadsell's, over pairs; `supervised` is Khosla's, over the batch."""
    margin: float = Field(default=1.0, gt=0.0, le=2.0)
    """`pairwise`: distance from which pairs of different labels cost nothing (normalised features are at most 2
    apart)."""
    temperature: float = Field(default=0.1, ge=1e-3)
    """`supervised`: divides the cosine similarities."""

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: nn.Module | None) -> torch.Tensor:
        if self.loss == "pairwise":
            return self.weight * contrastive_loss(outputs.features, labels, self.margin)
        return self.weight * supervised_contrastive_loss(outputs.features, labels, self.temperature)
