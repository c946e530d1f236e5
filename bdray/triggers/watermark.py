"""A half-transparent word."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.errors import TriggerError
from bdray.triggers.base import TRIGGERS
from bdray.triggers.placement import Color, Opacity, PlacedTrigger, Position, scaled, solid

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("watermark")
class Watermark(PlacedTrigger):
    """Text in the font that comes with Pillow, smoothed at its edges."""

    SOURCE: ClassVar[str] = "our choice, after the watermarks of TrojanNN, Liu et al. 2018 (NDSS)"

    text: str = Field(default="bdray", min_length=1)
    size: int = Field(default=10, ge=4)
    """Size of the font in pixels at 32 x 32."""
    position: Position = "center"
    color: Color = (255, 255, 255)
    opacity: Opacity = 0.4

    def picture(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        import numpy as np
        import torch
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(size=scaled(self.size, height, width))
        left, top, right, bottom = font.getbbox(self.text)
        box = (max(1, int(right - left)), max(1, int(bottom - top)))
        canvas = Image.new("L", box)
        ImageDraw.Draw(canvas).text((-left, -top), self.text, font=font, fill=255)
        coverage = torch.from_numpy(np.array(canvas)).float() / 255
        if not coverage.any():
            raise TriggerError(f"the watermark's text {self.text!r} draws nothing")
        return solid(self.color, coverage.shape[0], coverage.shape[1]), coverage
