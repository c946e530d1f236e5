"""The residual networks of He et al. 2016 whose blocks normalise and activate before they convolve."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bdray.models.base import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn


@ARCHITECTURES.register("preact_resnet18")
class PreActResNet18(Architecture):
    """timm's `resnetv2_18`: 18 layers, 11,172,170 parameters at 10 classes with the `cifar` stem, which is a 3 x 3
    convolution of stride 1, in place of 7 x 7 of stride 2 and pooling. BackdoorBench's PreAct-ResNet18 (11,171,146
    parameters) is `final_norm: false, init: torch`."""

    SOURCE: ClassVar[str] = "He et al. 2016, arXiv 1603.05027"
    ANY_IMAGE_SIZE: ClassVar[bool] = True
    MIXING_POINTS: ClassVar[tuple[str, ...] | None] = ("stage1", "stage2", "stage3", "stage4")

    final_norm: bool = True
    """Batch norm and ReLU between the last block and the pooling, as in the paper; many implementations for CIFAR-10,
    BackdoorBench's among them, have neither."""
    init: Literal["he", "torch"] = "he"
    """First weights of the convolutions: `he` is normal with std sqrt(2 / fan_out), as in this package's other ResNets;
    `torch` is PyTorch's default, uniform with bound 1 / sqrt(fan_in), as in BackdoorBench."""

    def smallest_map(self, image_size: int) -> int | None:
        return -(-image_size // (8 if self.has_cifar_stem(image_size) else 32))

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        from bdray.models.networks.preact_resnet import make_preact_resnet18

        return make_preact_resnet18(
            num_classes,
            cifar_stem=self.has_cifar_stem(image_size),
            final_norm=self.final_norm,
            he_init=self.init == "he",
        )
