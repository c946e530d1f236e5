"""NASNet-A, Large and Mobile (Zoph et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bdray.errors import ComponentError
from bdray.models.base import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn


class NASNet(Architecture):
    """NASNet-A. The `cifar` stem is that of the published CIFAR network: one 3 x 3 convolution of stride 1 and no
    reduction cells, so that 32 x 32 images have sides 32, 16 and 8 in the three stages."""

    SOURCE: ClassVar[str] = "Zoph et al. 2018, arXiv 1707.07012"
    VERSION: ClassVar[int] = 2  # in the first, the stem for small images kept the reduction cells
    ANY_IMAGE_SIZE: ClassVar[bool] = True
    MIXING_POINTS: ClassVar[tuple[str, ...] | None] = ("stage1", "stage2", "stage3")

    def smallest_map(self, image_size: int) -> int | None:
        # The standard stem begins without padding.
        return -(-image_size // 4) if self.has_cifar_stem(image_size) else -(-((image_size - 1) // 2) // 16)

    def check(self, image_size: int) -> None:
        super().check(image_size)
        if self.weights != "none" and self.has_cifar_stem(image_size):
            problem = f"published weights of {self.name} have no stem for small images: use 'standard', or no weights"
            raise ComponentError("stem", problem)


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
