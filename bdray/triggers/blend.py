"""A full-size pattern blended into the whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bdray.gpu import to_device
from bdray.triggers.base import TRIGGERS, Trigger, pattern_stream
from bdray.triggers.placement import REFERENCE_SIDE, enlarge, mix

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("blend")
class Blend(Trigger):
    """`alpha * pattern + (1 - alpha) * image`, the blended injection strategy, with one pattern for all images."""

    SOURCE: ClassVar[str] = "Chen et al. 2017, arXiv 1712.05526, section IV; the patterns are our choice"
    VERSION: ClassVar[int] = 2

    alpha: float = Field(default=0.2, gt=0.0, le=1.0)
    """Share of the pattern."""
    pattern: Literal["noise", "rings"] = "noise"
    """`noise`: every value uniform in 0..255, drawn from `pattern_seed` for 32 x 32 pixels and enlarged with hard
    edges, so that it is the same picture with the same contrast at every size of image; `rings`: coloured concentric
    rings, a smooth structure that survives resizing and looks like nothing in the data."""
    pattern_seed: int = Field(default=0, ge=0)
    """Names the pattern: the noise, or the phases of the rings."""

    def picture(self, height: int, width: int) -> torch.Tensor:
        """The pattern for images of `height x width`: uint8, `3 x height x width`."""
        import torch

        generator = pattern_stream(self.pattern_seed)
        if self.pattern == "noise":
            side = REFERENCE_SIDE
            noise = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
            return enlarge(noise, height, width)
        phases = torch.rand(3, 1, 1, generator=generator, dtype=torch.float64)
        rows = (torch.arange(height, dtype=torch.float64) + 0.5) / height - 0.5
        columns = (torch.arange(width, dtype=torch.float64) + 0.5) / width - 0.5
        radius = torch.hypot(rows.view(-1, 1), columns.view(1, -1))
        return (127.5 + 127.5 * torch.cos(2 * torch.pi * (6 * radius + phases))).round().to(torch.uint8)

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        picture = self.picture(images.shape[-2], images.shape[-1])
        return mix(images, to_device(picture, images.device), self.alpha)
