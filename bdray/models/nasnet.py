"""NASNet-A, Large and Mobile (Zoph et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bdray.models.base import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn


class NASNet(Architecture):
    """NASNet-A. With the `cifar` stem the first convolution has stride 1 and all else stays (our choice), so that
    32 x 32 images reach the three stages with sides 8, 4 and 2."""

    SOURCE: ClassVar[str] = "Zoph et al. 2018, arXiv 1707.07012"
    MIXING_POINTS: ClassVar[tuple[str, ...] | None] = ("stage1", "stage2", "stage3")


@ARCHITECTURES.register("nasnet")
class NASNetLarge(NASNet):
    """NASNet-A 6 @ 4032, 88,753,150 parameters at 1,000 classes: the same network as timm's `nasnetalarge`."""

    @property
    def published(self) -> str | None:
        return "nasnetalarge"

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        from bdray.models.networks.nasnet import LARGE, NASNetA

        return NASNetA(LARGE, num_classes, cifar_stem=self.has_cifar_stem(image_size))


@ARCHITECTURES.register("nasnet_mobile")
class NASNetMobile(NASNet):
    """NASNet-A 4 @ 1056, 5,289,978 parameters at 1,000 classes. timm publishes no weights for it; published ones with
    the names of the `pretrainedmodels` package load with `weights: file`."""

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        from bdray.models.networks.nasnet import MOBILE, NASNetA

        return NASNetA(MOBILE, num_classes, cifar_stem=self.has_cifar_stem(image_size))
