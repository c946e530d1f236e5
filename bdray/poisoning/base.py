"""What a poisoning strategy is, and the poison plan it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bdray.registry import Component, Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PoisonPlan:
    """Which images are poisoned, and with what labels. All arrays are int64, `M`, in step.

    Attributes:
        indices: positions in the training set, sorted, no repeats.
        old_labels: their true labels.
        new_labels: the labels they are trained with (equal to `old_labels` for clean-label poisoning).
        cover_indices: positions that are triggered but keep their label, sorted, disjoint from `indices`.
        append: True when poisoned copies are added beside the originals instead of replacing them.
    """

    indices: Labels
    old_labels: Labels
    new_labels: Labels
    cover_indices: Labels
    append: bool = False


class Poison(Component):
    """A poisoning strategy and how much of it: which images are triggered, and how they are labelled."""

    NAME_KEY: ClassVar[str] = "strategy"

    rate: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction that is poisoned: exactly `round(rate * n)` images. 0 is the baseline."""
    rate_of: Literal["train", "eligible"] = "train"
    """What `n` is: the poison stage's training images, or those the strategy may poison."""
    mode: Literal["replace", "append"] = "replace"
    """Whether a poisoned image takes the place of its original or is added beside it."""
    cover_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    """Fraction of the training images that is triggered but keeps its label."""

    def eligible(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        """Which images the strategy may poison. `labels`: int64, `N`. Returns bool, `N`."""
        raise NotImplementedError

    def poisoned_labels(self, labels: Labels, num_classes: int) -> Labels:
        """The labels that poisoned images are trained with. int64 `N` in, int64 `N` out."""
        raise NotImplementedError

    def attacked(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        """Which test images count for the attack success rate (never one already of the wanted label)."""
        raise NotImplementedError

    def wanted_labels(self, labels: Labels, num_classes: int) -> Labels:
        """The class the attacker wants each test image taken for. int64 `N` in, int64 `N` out."""
        raise NotImplementedError

    def check(self, num_classes: int) -> None:
        """Raises `ComponentError` when a class named here does not exist among `num_classes`."""


STRATEGIES: Registry[Poison] = Registry("poisoning strategy", Poison, "bdray.poisoning")
