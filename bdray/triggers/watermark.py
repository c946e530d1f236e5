"""A half-transparent word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bdray.errors import ComponentError, TriggerError
from bdray.triggers.base import TRIGGERS
from bdray.triggers.placement import REFERENCE_SIDE, Color, Opacity, PlacedTrigger, Position, scaled, solid

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("watermark")
class Watermark(PlacedTrigger):
    """Text in the font that comes with Pillow, smoothed at its edges."""

    SOURCE: ClassVar[str] = "our choice, after the watermarks of TrojanNN, Liu et al. 2018 (NDSS)"

    text: str = Field(default="bdray", min_length=1)
    """What is written."""
    size: int = Field(default=10, ge=4)
    """Size of the font in pixels at 32 x 32."""
    position: Position = "center"
    color: Color = (255, 255, 255)
    opacity: Opacity = 0.4

    def check(self, image_size: int) -> None:
        # Only then is the font asked: one of a million pixels takes the memory that it needs.
        too_large = len(self.text) > image_size or self.size > 4 * REFERENCE_SIDE
        if not too_large:
            *_, rows, columns = self._measured(image_size, image_size)
            too_large = max(rows, columns) > image_size
        if too_large:
            option = "text" if len(self.text) > image_size else "size"
            raise ComponentError(option, f"the watermark's text is larger than images of {image_size} pixels")
        self.check_box(rows, columns, image_size, "margin")

    def _measured(self, height: int, width: int) -> tuple[Any, float, float, int, int]:
        """The font, and the text's left and top edge, height and width in pixels."""
        from PIL import ImageFont

        font = ImageFont.load_default(size=scaled(self.size, height, width))
        left, top, right, bottom = font.getbbox(self.text)
        return font, left, top, max(1, int(bottom - top)), max(1, int(right - left))

    def picture(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        import numpy as np
        import torch
        from PIL import Image, ImageDraw

        font, left, top, rows, columns = self._measured(height, width)
        canvas = Image.new("L", (columns, rows))
        ImageDraw.Draw(canvas).text((-left, -top), self.text, font=font, fill=255)
        coverage = torch.from_numpy(np.array(canvas)).float() / 255
        if not coverage.any():
            raise TriggerError(f"the watermark's text {self.text!r} draws nothing")
        return solid(self.color, coverage.shape[0], coverage.shape[1]), coverage
