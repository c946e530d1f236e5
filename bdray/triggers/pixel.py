"""A single pixel, or four: the smallest triggers of BadNets."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bdray.triggers.base import TRIGGERS
from bdray.triggers.placement import FOUR_PIXELS, Color, PlacedTrigger, scaled, solid

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("pixel")
class Pixel(PlacedTrigger):
    """One pixel, or a pattern of four in a square of 3 x 3; at larger images each is a small block."""

    SOURCE: ClassVar[str] = "single pixel and pattern backdoors of BadNets, Gu et al. 2017, arXiv 1708.06733"

    count: Literal[1, 4] = 1
    """How many pixels are set."""
    color: Color = (255, 255, 255)

    def check(self, image_size: int) -> None:
        side = scaled(1, image_size, image_size) * (len(FOUR_PIXELS) if self.count == 4 else 1)
        self.check_box(side, side, image_size, "margin")

    def picture(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        pixels = torch.tensor(FOUR_PIXELS if self.count == 4 else ((1,),), dtype=torch.float32)
        block = scaled(1, height, width)
        coverage = torch.kron(pixels, torch.ones(block, block))
        return solid(self.color, coverage.shape[0], coverage.shape[1]), coverage
