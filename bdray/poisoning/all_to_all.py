"""All-to-all poisoning: every class that carries the trigger becomes the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdray.errors import ComponentError
from bdray.poisoning.base import STRATEGIES, Poison

if TYPE_CHECKING:
    import numpy.typing as npt

    from bdray.poisoning.base import Labels


@STRATEGIES.register("all_to_all")
class AllToAll(Poison):
    """Poisons images of every class; class `y` becomes `y + 1`, and the last becomes class 0."""

    SOURCE: ClassVar[str] = "the all-to-all attack of BadNets, Gu et al. 2017, arXiv 1708.06733"

    def eligible(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        return np.ones(len(labels), dtype=np.bool_)

    def wanted_labels(self, labels: Labels, num_classes: int) -> Labels:
        return (labels + 1) % num_classes

    def check(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ComponentError("", "all_to_all needs at least 2 classes")
