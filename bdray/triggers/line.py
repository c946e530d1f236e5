"""A straight line across the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bdray.gpu import to_device
from bdray.triggers.base import TRIGGERS, Trigger
from bdray.triggers.placement import Color, Opacity, mix, scaled

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("line")
class Line(Trigger):
    """A line from edge to edge."""

    SOURCE: ClassVar[str] = "our choice"
    LENGTHS: ClassVar[tuple[str, ...]] = ("thickness",)

    orientation: Literal["horizontal", "vertical", "diagonal"] = "horizontal"
    """`diagonal` falls from the top left."""
    thickness: int = Field(default=1, ge=1)
    """Pixels at 32 x 32."""
    place: float = Field(default=0.5, ge=0.0, le=1.0)
    """Where between top and bottom (horizontal) or left and right; a diagonal through the middle at 0.5."""
    color: Color = (255, 255, 255)
    opacity: Opacity = 1.0

    def mask(self, height: int, width: int) -> torch.Tensor:
        """Which pixels are on the line: bool, `height x width`."""
        import torch

        thickness = scaled(self.thickness, height, width)
        rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
        if self.orientation == "diagonal":
            slope = (width - 1) / max(1, height - 1)
            distance = columns - rows * slope - (self.place - 0.5) * width
            # A line flatter than 45 degrees covers several columns in a row.
            half = max(thickness, slope) / 2
            return (distance >= -half) & (distance < half)
        along, room = (rows, height) if self.orientation == "horizontal" else (columns, width)
        first = round(self.place * (room - thickness))
        return ((along >= first) & (along < first + thickness)).expand(height, width)

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        device = images.device
        color = to_device(torch.tensor(self.color, dtype=torch.uint8), device).view(3, 1, 1)
        coverage = to_device(self.mask(images.shape[-2], images.shape[-1]), device).float()
        return mix(images, color, coverage * self.opacity)
