"""All-to-one poisoning: whatever carries the trigger becomes the target class (BadNets, Gu et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdray.poisoning.base import STRATEGIES, ClassIndex, Poison, check_class

if TYPE_CHECKING:
    import numpy.typing as npt

    from bdray.poisoning.base import Labels


@STRATEGIES.register("all_to_one")
class AllToOne(Poison):
    """Poisons images of every class but the target's."""

    SOURCE: ClassVar[str] = "BadNets, Gu et al. 2017, arXiv 1708.06733"
    VERSION: ClassVar[int] = 2

    target: ClassIndex = 0
    """The class the attacker wants."""

    def eligible(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        return np.asarray(labels != self.target)

    def wanted_labels(self, labels: Labels, num_classes: int) -> Labels:
        return np.full_like(labels, self.target)

    def check(self, num_classes: int) -> None:
        check_class("target", self.target, num_classes)
