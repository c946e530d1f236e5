"""Any classification network of timm."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bdray.errors import ComponentError, nearest
from bdray.models.base import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from torch import nn


@ARCHITECTURES.register("timm/")
class TimmModel(Architecture):
    """`timm/<name>`. Its mixing points are timm's feature stages, as far as everything flows through them: known only
    once it is built."""

    SOURCE: ClassVar[str] = "timm (Wightman 2019)"

    variant: str
    """timm's name, with or without the tag of its weights (`vit_tiny_patch16_224.augreg_in21k_ft_in1k`)."""

    @property
    def published(self) -> str | None:
        return self.variant

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        from bdray.models.networks.timm_model import make_timm

        return make_timm(self.variant, num_classes, image_size, pretrained=False)

    def make_shallow(self, image_size: int) -> nn.Module | None:
        from bdray.models.networks.timm_model import make_timm_shallow

        return make_timm_shallow(self.variant, image_size)

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
        architecture = self.variant.partition(".")[0]
        known = known_architectures()
        if known and architecture not in known and not _is_registered(architecture):
            raise ComponentError("name", f"there is no timm model '{architecture}'; {nearest(architecture, known)}")
        if self.stem == "cifar":
            raise ComponentError("stem", f"{self.name} has no stem that can be swapped; use 'auto' or 'standard'")


@cache
def known_architectures() -> frozenset[str]:
    """timm's architectures and their old names, as its source registers them: to ask timm itself is to import torch,
    which planning does not. Empty where there is no source to read."""
    spec = find_spec("timm")
    names: set[str] = set()
    for path in Path(spec.origin).parent.glob("models/*.py") if spec and spec.origin else ():
        code = path.read_text(encoding="utf-8")
        names.update(re.findall(r"^@register_model\s*\ndef (\w+)\(", code, re.MULTILINE))
        for renamed in code.split("\nregister_model_deprecations(")[1:]:
            names.update(re.findall(r"""['"](\w+)['"]\s*:""", renamed))
    return frozenset(names)


def _is_registered(architecture: str) -> bool:
    """Whether a plugin, which may import timm, has registered an architecture of its own there."""
    timm = sys.modules.get("timm")
    return timm is not None and bool(timm.is_model(architecture))
