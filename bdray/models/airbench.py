"""The network that reaches 94 % on CIFAR-10 in the fewest operations known."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.models.base import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn


@ARCHITECTURES.register("airbench")
class Airbench(Architecture):
    """Small VGG-like network with a whitening first layer, made to be trained in a few epochs.

    The whitening filters come from the training pictures as files (stamped ones included) when the poison stage begins,
    and are kept in the state dict; a network that was only built has none, one with `weights: file` those of the file.
    """

    SOURCE: ClassVar[str] = "airbench94, Jordan 2024, arXiv 2404.00498"
    MIXING_POINTS: ClassVar[tuple[str, ...] | None] = ("stage1", "stage2", "stage3")

    MIN_IMAGE_SIZE: ClassVar[int] = 9
    OWN_STEM: ClassVar[bool] = True

    width: int = Field(default=64, ge=4)
    """Channels of the first group; the other two have `expansion` times as many (64 and 256 in airbench94)."""
    expansion: int = Field(default=4, ge=1)
    """See `width`."""
    padded: bool = True
    """Repeat the last row and column of the picture once (airbench94 does not). Without it the maps of a 32-pixel
    picture are 31, 15, 7 and 3 wide, every pool drops a last row and column, and a patch in the bottom right corner is
    hardly seen (`docs/silent-choices.md`)."""
    logit_scale: float = Field(default=1 / 9, gt=0.0)
    """Factor of the logits."""

    def smallest_map(self, image_size: int) -> int | None:
        return (image_size - (not self.padded)) // 8

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        from bdray.models.networks.airbench import Airbench as Network

        widths = (self.width, self.expansion * self.width, self.expansion * self.width)
        return Network(widths, num_classes, padded=self.padded, scale=self.logit_scale)
