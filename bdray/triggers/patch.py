"""A square patch: the classic BadNets trigger."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bdray.triggers.base import TRIGGERS, Trigger
from bdray.triggers.placement import Color, Opacity, Position, composite, enlarge, places, scaled, solid

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("patch")
class Patch(Trigger):
    """A square of one colour, or a checkerboard of that colour and its complement."""

    SOURCE: ClassVar[str] = "BadNets, Gu et al. 2017, arXiv 1708.06733; size, place and colours are our choice"

    size: int = Field(default=3, ge=1)
    """Side in pixels at 32 x 32."""
    style: Literal["solid", "checkerboard"] = "solid"
    """Cells of a checkerboard are one pixel at 32 x 32; its corners have the colour."""
    position: Position = "bottom_right"
    margin: int = Field(default=1, ge=0)
    """Pixels to the edges of the image at 32 x 32."""
    color: Color = (255, 255, 255)
    opacity: Opacity = 1.0

    def pattern(self, height: int, width: int) -> torch.Tensor:
        """The square for images of `height x width`: uint8, `3 x s x s`."""
        import torch

        side = scaled(self.size, height, width)
        square = solid(self.color, side, side)
        if self.style == "checkerboard":
            cells = torch.arange(self.size)
            odd = (cells.view(-1, 1) + cells) % 2 == 1
            square = torch.where(enlarge(odd.unsqueeze(0), side, side), 255 - square, square)
        return square

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        height, width = images.shape[-2:]
        square = self.pattern(height, width)
        side = square.shape[-1]
        tops, lefts = places(
            self.position,
            len(images),
            outer=(height, width),
            inner=(side, side),
            margin=scaled(self.margin, height, width),
            generator=generator,
        )
        return composite(images, square, self.opacity, tops, lefts)
