"""The soft nearest neighbour loss (Salakhutdinov and Hinton 2007; Frosst et al. 2019) on chosen layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field, field_validator

from bdray.regularizers.base import REGULARIZERS, Regularizer
from bdray.regularizers.layers import Layers, check_distinct, check_points
from bdray.regularizers.numerics import in_full_precision, positive_pairs, squared_distances

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.models.networks.taps import Outputs

ALWAYS_THERE = ("input", "features", "logits")


def soft_nearest_neighbor_loss(
    features: torch.Tensor, labels: torch.Tensor, temperature: float | torch.Tensor
) -> torch.Tensor:
    """Frosst et al. 2019, equation 1: how entangled the classes are.

    The mean, over the samples that have another one of their label, of
    `-log(sum_{j != i, y_j = y_i} exp(-||x_i - x_j||^2 / T) / sum_{k != i} exp(-||x_i - x_k||^2 / T))`.

    Args:
        features: `N x D` (or `N x ...`, flattened), any float type; computed in float32, or in float64 where they are.
        labels: int64, `N`.
        temperature: `T > 0`; a scalar tensor gets a gradient.

    Returns:
        A scalar; 0 (with zero gradient) where no two samples share a label. Identical features have zero gradient.
    """
    import torch

    closeness = -squared_distances(in_full_precision(features)) / temperature
    positive, itself = positive_pairs(labels)
    has_positive = positive.any(dim=1)
    # A row without a positive is left out below; until then it must not be a sum over nothing, whose gradient is NaN.
    counted = positive | ~has_positive[:, None]
    among_positive = closeness.masked_fill(~counted, -torch.inf).logsumexp(dim=1)
    among_all = closeness.masked_fill(itself, -torch.inf).logsumexp(dim=1)
    losses = torch.where(has_positive, among_all - among_positive, 0.0)
    return losses.sum() / has_positive.sum().clamp(min=1)


@REGULARIZERS.register("soft_nearest_neighbors")
class SoftNearestNeighbors(Regularizer):
    """`weight` times the sum of the loss over `layers`. A negative weight entangles the classes in feature space
    (Frosst's use), a positive one separates them."""

    SOURCE: ClassVar[str] = "Frosst et al. 2019, arXiv 1902.01889; the defaults are our choice"
    USES_LABELS: ClassVar[bool] = True

    weight: float = 0.1
    """Factor of the penalty; its sign says which way."""
    temperature: float = Field(default=100.0, ge=1e-3, le=1e6)
    """Scale of squared distances; where it is learned, what it starts from."""
    learned: bool = False
    """Train one temperature a layer, each to make its loss small, whatever the sign of `weight` (Frosst et al. 2019
    minimise over it)."""
    layers: Layers = Field(default=("features",), strict=False)
    """"features" (penultimate), "logits", "input", or names of the network's mixing points."""

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        return check_distinct(layers)

    @property
    def capture(self) -> tuple[str, ...]:
        return tuple(layer for layer in self.layers if layer not in ("features", "logits"))

    def make_state(self) -> nn.Module | None:
        if not self.learned:
            return None
        import torch
        from torch import nn

        # Its logarithm is trained, so that it stays positive.
        logarithm = torch.tensor(self.temperature).log()
        return nn.ParameterDict({layer: nn.Parameter(logarithm.clone()) for layer in self.layers})

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: nn.Module | None) -> torch.Tensor:
        import torch

        known = {"features": outputs.features, "logits": outputs.logits, **outputs.hidden}
        total = torch.zeros((), device=labels.device)
        for layer in self.layers:
            temperature = self._temperature(layer, state)
            total = total + soft_nearest_neighbor_loss(known[layer], labels, temperature)
        return self.weight * total

    def check(self, points: tuple[str, ...] | None) -> None:
        check_points(self.layers, points, ALWAYS_THERE)

    def _temperature(self, layer: str, state: nn.Module | None) -> float | torch.Tensor:
        if state is None:
            return self.temperature
        temperature: torch.Tensor = cast("nn.ParameterDict", state)[layer].exp()
        # The optimizer lowers weight * loss; where the weight is negative the temperature alone must go the other way.
        return temperature if self.weight >= 0 else 2 * temperature.detach() - temperature
