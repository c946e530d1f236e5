"""A smooth, hardly visible warp of the whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bdray.gpu import to_device
from bdray.triggers.base import TRIGGERS, Trigger, pattern_stream

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("warp")
class Warp(Trigger):
    """Moves every pixel along one fixed smooth field: uniform noise on a `k x k` grid, divided by its mean absolute
    value, bicubically enlarged to the image and scaled by `s`. A flat image cannot change.

    WaNet's noise mode is `covers: noise` with a `poison.cover_rate` (the paper: 0.2): cover images keep their label and
    are warped by a perturbed field, so that the model learns this field and not any warp. Without it this is WaNet's
    warp alone.
    """

    SOURCE: ClassVar[str] = "WaNet, Nguyen and Tran 2021, arXiv 2102.10369, sections 3.3 (warp) and 3.4 (noise mode)"

    grid_size: int = Field(default=4, ge=2)
    """`k`: control points a side."""
    strength: float = Field(default=0.5, gt=0.0)
    """`s`: as in the paper's code the field is `s / H` in coordinates that run from -1 to 1, so the mean shift at the
    control points is about `s / 2` pixels, whatever the size of the image."""
    pattern_seed: int = Field(default=0, ge=0)
    """Names the field."""
    covers: Literal["warp", "noise"] = "warp"
    """How cover images are warped: by the same field, or with noise of its own in every image and pixel."""

    @property
    def cover_trigger(self) -> Warp:
        return self if self.covers == "warp" else _NoisyWarp.model_construct(**dict(self))

    def control(self) -> torch.Tensor:
        """The normalised control points: float32, `2 x k x k`, x before y."""
        import torch

        generator = pattern_stream(self.pattern_seed)
        noise = torch.rand(2, self.grid_size, self.grid_size, generator=generator) * 2 - 1
        return noise / noise.abs().mean()

    def sampling_grid(self, height: int, width: int) -> torch.Tensor:
        """Where each pixel is fetched from: float32, `height x width x 2` (x, y), in [-1, 1] from corner to corner."""
        import torch
        from torch.nn import functional

        field = functional.interpolate(
            self.control().unsqueeze(0), size=(height, width), mode="bicubic", align_corners=True
        )[0].permute(1, 2, 0)
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        shift = self.strength * field / torch.tensor([width, height])
        return (torch.stack((x, y), dim=-1) + shift).clamp(-1, 1)

    def grids(self, count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        """The sampling grids of `count` images: float32, `count x height x width x 2`, or one for all."""
        return self.sampling_grid(height, width).unsqueeze(0)

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        from torch.nn import functional

        grids = self.grids(len(images), images.shape[-2], images.shape[-1], generator)
        grids = to_device(grids, images.device).expand(len(images), -1, -1, -1)
        warped = functional.grid_sample(images.float(), grids, mode="bilinear", align_corners=True)
        return warped.round_().clamp_(0, 255).to(images.dtype)


class _NoisyWarp(Warp):
    """What WaNet's noise mode does to cover images: uniform noise in -1..1, divided by the image's size, on the grid of
    every image, so up to half a pixel each way."""

    def grids(self, count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        import torch

        noise = torch.rand(count, height, width, 2, generator=generator) * 2 - 1
        return (self.sampling_grid(height, width) + noise / torch.tensor([width, height])).clamp(-1, 1)
