"""The residual networks that He et al. 2016 designed for 32 x 32 images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bdray.models.base import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn


class CifarResNet(Architecture):
    """ResNet of depth `6n + 2`: three stages of `n` basic blocks with 16, 32 and 64 channels.

    Class attributes:
        BLOCKS: `n`.
    """

    SOURCE: ClassVar[str] = "He et al. 2016, arXiv 1512.03385, section 4.2"
    ANY_IMAGE_SIZE: ClassVar[bool] = True
    MIXING_POINTS: ClassVar[tuple[str, ...] | None] = ("stage1", "stage2", "stage3")
    OWN_STEM: ClassVar[bool] = True
    BLOCKS: ClassVar[int]

    shortcut: Literal["identity", "projection"] = "identity"
    """Where a stage narrows the map: `identity` subsamples and pads with zero channels (the paper's option A, what it
    uses for these networks), `projection` is a 1 x 1 convolution (option B)."""

    def smallest_map(self, image_size: int) -> int | None:
        return -(-image_size // 4)

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        from bdray.models.networks.cifar_resnet import CifarResNet as Network

        return Network(self.BLOCKS, num_classes, projection=self.shortcut == "projection")


@ARCHITECTURES.register("resnet20")
class ResNet20(CifarResNet):
    """20 layers, 269,722 parameters at 10 classes."""

    BLOCKS: ClassVar[int] = 3


@ARCHITECTURES.register("resnet8")
class ResNet8(CifarResNet):
    """8 layers of the same family, 75,290 parameters at 10 classes: for tests and small machines (our choice)."""

    BLOCKS: ClassVar[int] = 1
