"""The ImageNet residual networks of He et al. 2016."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bdray.models.base import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn


class ImageNetResNet(Architecture):
    """timm's ResNet. The `cifar` stem is a 3 x 3 convolution of stride 1, in place of 7 x 7 of stride 2 and pooling."""

    SOURCE: ClassVar[str] = "He et al. 2016, arXiv 1512.03385"
    VERSION: ClassVar[int] = 2  # in the first, the last batch norms began at zero
    ANY_IMAGE_SIZE: ClassVar[bool] = True
    MIXING_POINTS: ClassVar[tuple[str, ...] | None] = ("stage1", "stage2", "stage3", "stage4")

    zero_init_residual: bool = False
    """The last batch norm of every block begins at zero, so that the block begins as its shortcut (Goyal et al. 2017;
    timm's default), not at one (He et al. 2016, torchvision, BackdoorBench). With zeros a network learns later."""

    @property
    def published(self) -> str | None:
        return self.name

    def smallest_map(self, image_size: int) -> int | None:
        return -(-image_size // (8 if self.has_cifar_stem(image_size) else 32))

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        from bdray.models.networks.resnet import make_resnet

        return make_resnet(
            self.name,
            num_classes,
            cifar_stem=self.has_cifar_stem(image_size),
            zero_init_residual=self.zero_init_residual,
        )


@ARCHITECTURES.register("resnet18")
class ResNet18(ImageNetResNet):
    """18 layers, 11,689,512 parameters at 1,000 classes."""


@ARCHITECTURES.register("resnet50")
class ResNet50(ImageNetResNet):
    """50 layers, 25,557,032 parameters at 1,000 classes."""
