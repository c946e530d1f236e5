"""Any classification network of timm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bdray.errors import ComponentError
from bdray.models.base import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn


@ARCHITECTURES.register("timm/")
class TimmModel(Architecture):
    """`timm/<name>`. Its mixing points are timm's feature stages, as far as everything flows through them; whether
    there is such a model, and what points it has, is known only once it is built."""

    SOURCE: ClassVar[str] = "timm (Wightman 2019)"

    variant: str
    """timm's name, with or without the tag of its weights (`vit_tiny_patch16_224.augreg_in21k_ft_in1k`)."""

    @property
    def published(self) -> str | None:
        return self.variant

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        from bdray.models.networks.timm_model import make_timm

        return make_timm(self.variant, num_classes, image_size, pretrained=False)

    def _begun(self, num_classes: int, image_size: int) -> nn.Module:
        if self.weights != "imagenet":
            return super()._begun(num_classes, image_size)
        from bdray.models.networks.timm_model import make_timm

        # Not through the state dict: timm itself fits position embeddings to another image size.
        return make_timm(self.variant, num_classes, image_size, pretrained=True)

    def has_cifar_stem(self, image_size: int) -> bool:
        return False

    def check(self, image_size: int) -> None:
        super().check(image_size)
        if self.stem == "cifar":
            raise ComponentError("stem", f"{self.name} has no stem that can be swapped; use 'auto' or 'standard'")
