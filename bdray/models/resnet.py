"""The ImageNet residual networks of He et al. 2016."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bdray.models.base import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn


class ImageNetResNet(Architecture):
    """timm's ResNet. The `cifar` stem is a 3 x 3 convolution of stride 1, in place of 7 x 7 of stride 2 and pooling."""

    SOURCE: ClassVar[str] = "He et al. 2016, arXiv 1512.03385"
    MIXING_POINTS: ClassVar[tuple[str, ...] | None] = ("stage1", "stage2", "stage3", "stage4")

    @property
    def published(self) -> str | None:
        return self.name

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        from bdray.models.networks.resnet import make_resnet

        return make_resnet(self.name, num_classes, cifar_stem=self.has_cifar_stem(image_size))


@ARCHITECTURES.register("resnet18")
class ResNet18(ImageNetResNet):
    """18 layers, 11,689,512 parameters at 1,000 classes."""


@ARCHITECTURES.register("resnet50")
class ResNet50(ImageNetResNet):
    """50 layers, 25,557,032 parameters at 1,000 classes."""
