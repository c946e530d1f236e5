"""One-to-one poisoning: images of one class that carry the trigger become another class."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import model_validator

from bdray.errors import ComponentError
from bdray.poisoning.base import STRATEGIES, ClassIndex, Poison, check_class

if TYPE_CHECKING:
    import numpy.typing as npt

    from bdray.poisoning.base import Labels


@STRATEGIES.register("one_to_one")
class OneToOne(Poison):
    """Poisons images of the source class alone.

    With a `cover_rate` above 0 it is TaCT, the targeted contamination attack of Tang et al. 2021 (arXiv 1908.00686):
    images of further classes carry the trigger and keep their labels, so that the trigger works on the source class
    alone. The paper takes one source class and covers from a few others; here covers come from all that are left.
    """

    SOURCE: ClassVar[str] = "the single target attack of BadNets, Gu et al. 2017, arXiv 1708.06733"
    VERSION: ClassVar[int] = 2

    source: ClassIndex = 1
    """The class whose images are poisoned."""
    target: ClassIndex = 0
    """The class the attacker wants."""

    @model_validator(mode="after")
    def _two_classes(self) -> OneToOne:
        if self.source == self.target:
            raise ComponentError("source", f"source and target must differ, both are class {self.target}")
        return self

    def eligible(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        return np.asarray(labels == self.source)

    def attacked(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        return np.asarray(labels == self.source)

    def wanted_labels(self, labels: Labels, num_classes: int) -> Labels:
        return np.full_like(labels, self.target)

    def coverable(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        # A triggered source image with its own label would contradict the poison.
        return np.asarray(super().coverable(labels, num_classes) & (labels != self.source))

    def check(self, num_classes: int) -> None:
        check_class("source", self.source, num_classes)
        check_class("target", self.target, num_classes)
