"""Fewer colours: a trigger made of rounding alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.triggers.base import TRIGGERS, Trigger

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("bpp")
class BitsPerPixel(Trigger):
    """Rounds every value to one of `2^depth` levels: `round(x / 255 * (2^d - 1)) / (2^d - 1) * 255`.

    This is BppAttack's trigger alone; its training with negative samples is a hand in the training, which nothing here
    has. Where all values are such levels already (a white image), nothing changes.
    """

    SOURCE: ClassVar[str] = "BppAttack, Wang et al. 2022, arXiv 2205.13383; the defaults are those of its code"

    depth: int = Field(default=3, ge=1, le=7)
    """`d`: bits of each channel of each pixel; 8 would change nothing."""
    dithering: bool = False
    """Floyd-Steinberg: what rounding a pixel adds or takes is handed on to the pixels to its right and below, 7/16,
    3/16, 5/16 and 1/16 of it, so that areas keep their mean colour."""

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        # In double precision, so that every device rounds alike.
        values = images.double()
        reduced = _diffuse(values, self.depth) if self.dithering else _nearest_level(values, self.depth)
        return reduced.round_().clamp_(0, 255).to(images.dtype)


def _nearest_level(values: torch.Tensor, depth: int) -> torch.Tensor:
    steps = (1 << depth) - 1
    return (values / 255 * steps).round() / steps * 255


def _diffuse(values: torch.Tensor, depth: int) -> torch.Tensor:
    """Floyd and Steinberg 1976. float64, `N x 3 x H x W`.

    A pixel waits for its left neighbour and for three in the row above: those with one `column + 2 * row` wait for none
    of each other and go together. In memory, with a column left and right and a row below for what leaves the image,
    they lie one row less two columns apart.
    """
    from torch.nn import functional

    height, width = values.shape[-2:]
    padded = functional.pad(values, (1, 1, 0, 1)).contiguous()
    row = width + 2
    flat = padded.flatten(2)
    for diagonal in range(width + 2 * (height - 1)):
        first, last = max(0, (diagonal - width + 2) // 2), min(height - 1, diagonal // 2)
        start, stop = (1 + diagonal + y * (row - 2) for y in (first, last))

        def at(offset: int, start: int = start, stop: int = stop) -> torch.Tensor:
            return flat[..., start + offset : stop + offset + 1 : row - 2]

        level = _nearest_level(at(0), depth)
        error = at(0) - level
        at(0).copy_(level)
        for offset, share in ((1, 7), (row - 1, 3), (row, 5), (row + 1, 1)):
            at(offset).add_(error, alpha=share / 16)
    return padded[..., :-1, 1:-1]
