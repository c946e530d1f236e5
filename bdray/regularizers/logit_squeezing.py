"""Logit squeezing (Kannan et al. 2018): noisy inputs, and a price on large logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.intensity import Intensity
from bdray.regularizers.base import REGULARIZERS, Regularizer
from bdray.regularizers.numerics import in_full_precision, split_scale

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.models.networks.taps import Outputs


def logit_squeezing_penalty(logits: torch.Tensor, *, squared: bool = False) -> torch.Tensor:
    """`mean_i ||z_i||_2` (Kannan et al. 2018, section 3.3), or `mean_i ||z_i||_2^2`.

    Args:
        logits: `N x K`, any float type; computed in float32, or in float64 where they are.
        squared: the mean of squared norms.

    Returns:
        A scalar. Zero logits have zero gradient; an empty batch gives 0.
    """
    import torch

    wide = in_full_precision(logits)
    batch_size = max(len(wide), 1)
    if squared:
        return wide.square().sum() / batch_size
    scaled, scale = split_scale(wide)
    length = torch.where(scale == 0.0, 1.0, scaled.square().sum(dim=1, keepdim=True)).sqrt()
    return (scale * length).sum() / batch_size


@REGULARIZERS.register("logit_squeezing")
class LogitSqueezing(Regularizer):
    """Gaussian noise on the inputs and `weight` times the mean norm of the logits."""

    SOURCE: ClassVar[str] = "Kannan et al. 2018, arXiv 1803.06373; the defaults are our choice"

    weight: float = Field(default=0.05, ge=0.0)
    """Factor of the penalty."""
    sigma: Intensity = 16 / 255
    """Standard deviation of the noise on inputs in [0, 1], which are clipped again: a fraction of the full range, or
    above 1 in levels of 255 (`16` is `16/255`)."""
    squared: bool = False
    """Penalize the mean of squared norms."""

    def transform_inputs(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        if self.sigma == 0.0:
            return images
        noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        return (images + self.sigma * noise).clamp(0.0, 1.0)

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: nn.Module | None) -> torch.Tensor:
        return self.weight * logit_squeezing_penalty(outputs.logits, squared=self.squared)
