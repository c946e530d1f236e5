"""A faint sinusoid over the whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.gpu import to_device
from bdray.intensity import Intensity
from bdray.triggers.base import TRIGGERS, Trigger

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("sinusoid")
class Sinusoid(Trigger):
    """Adds `v(i, j) = delta * sin(2 pi j f / m)` to column `j = 1..m` of every row `i`, in all channels."""

    SOURCE: ClassVar[str] = "SIG, Barni et al. 2019, arXiv 1902.11237, section 3.1"

    delta: Intensity = Field(default=20 / 255, gt=0.0)
    """Amplitude: a fraction of the full range, or above 1 in levels of 255 (`20` is `20/255`)."""
    frequency: float = Field(default=6.0, gt=0.0)
    """Periods across the image, so it needs no scaling."""

    def signal(self, width: int) -> torch.Tensor:
        """One row in levels of 255: float64, `width`."""
        import torch

        columns = torch.arange(1, width + 1, dtype=torch.float64)
        return 255 * self.delta * torch.sin(2 * torch.pi * columns * self.frequency / width)

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        # Rounded once, in double precision on the CPU, so that every device adds the same whole levels.
        levels = to_device(self.signal(images.shape[-1]).round().to(torch.int16), images.device)
        return (images.to(torch.int16) + levels).clamp_(0, 255).to(images.dtype)
