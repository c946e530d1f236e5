"""Square patches: the classic BadNets trigger, and a textured one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bdray.errors import ComponentError
from bdray.intensity import Intensity
from bdray.triggers.base import TRIGGERS, pattern_stream
from bdray.triggers.placement import FOUR_PIXELS, Color, PlacedTrigger, enlarge, scaled, solid

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("patch")
class Patch(PlacedTrigger):
    """A square of one colour, or a pattern of that colour and its complement.

    The trigger of Turner et al. 2019 is `style: label_consistent, position: four_corners, margin: 0`; their fainter one
    has an `amplitude` of 16, 32 or 64 in training and of 255 at test time (`poison.test_trigger: {amplitude: 255}`).
    """

    SOURCE: ClassVar[str] = (
        "BadNets, Gu et al. 2017, arXiv 1708.06733; size, place and colours are our choice; "
        "label_consistent: Turner et al. 2019, arXiv 1912.02771"
    )

    size: int = Field(default=3, ge=1)
    """Side in pixels at 32 x 32."""
    style: Literal["solid", "checkerboard", "label_consistent"] = "solid"
    """Cells of a checkerboard are one pixel at 32 x 32; its top left corner has the colour. `label_consistent` is a
    pattern of 3 x 3 cells with the colour in four of them."""
    color: Color = (255, 255, 255)
    amplitude: Annotated[Intensity, Field(gt=0.0)] | None = None
    """Null: the pattern covers the pixels below it. Else it is added to them: white cells add that much, black ones
    take it away, in between in proportion. A fraction of the full range, or above 1 in levels of 255."""

    @model_validator(mode="after")
    def _covers_or_adds(self) -> Patch:
        if self.amplitude is not None and self.opacity != 1.0:
            raise ComponentError("opacity", "has no meaning with an `amplitude`, which covers nothing; leave one out")
        return self

    def lay(self, pixels: torch.Tensor, picture: torch.Tensor, opacity: torch.Tensor | float) -> torch.Tensor:
        import torch

        if self.amplitude is None:
            return super().lay(pixels, picture, opacity)
        # In double precision, so that every device adds the same whole levels.
        levels = ((picture.double() * 2 - 255) * self.amplitude).round().to(torch.int16)
        return (pixels.to(torch.int16) + levels).clamp(0, 255).to(pixels.dtype)

    def check(self, image_size: int) -> None:
        side = scaled(self.size, image_size, image_size)
        if self.style == "label_consistent" and side < len(FOUR_PIXELS):
            square = f"a square of {side} pixel{'s' * (side > 1)} in images of {image_size}"
            raise ComponentError("size", f"{square} has no room for the pattern of 3 x 3 cells of {self.style}")
        self.check_box(side, side, image_size)

    def picture(self, height: int, width: int) -> tuple[torch.Tensor, float]:
        import torch

        side = scaled(self.size, height, width)
        square = solid(self.color, side, side)
        if self.style == "solid":
            return square, 1.0
        cells = torch.arange(self.size)
        odd = (cells.view(-1, 1) + cells) % 2 == 1
        other = odd if self.style == "checkerboard" else torch.tensor(FOUR_PIXELS) == 0
        return torch.where(enlarge(other.unsqueeze(0), side, side), 255 - square, square), 1.0


@TRIGGERS.register("noise_patch")
class NoisePatch(PlacedTrigger):
    """A square of random pixels, the same in every image."""

    SOURCE: ClassVar[str] = "our choice: a BadNets patch (Gu et al. 2017, arXiv 1708.06733) with a random texture"

    size: int = Field(default=3, ge=1)
    """Side in pixels at 32 x 32."""
    pattern_seed: int = Field(default=0, ge=0)
    """Names the pattern: each channel of each pixel is uniform in 0..255."""

    def check(self, image_size: int) -> None:
        side = scaled(self.size, image_size, image_size)
        self.check_box(side, side, image_size)

    def picture(self, height: int, width: int) -> tuple[torch.Tensor, float]:
        import torch

        generator = pattern_stream(self.pattern_seed)
        pattern = torch.randint(0, 256, (3, self.size, self.size), dtype=torch.uint8, generator=generator)
        side = scaled(self.size, height, width)
        return enlarge(pattern, side, side), 1.0
