"""What a poisoning strategy is, and the poison plan it makes."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, SerializeAsAny

from bdray.errors import ComponentError
from bdray.intensity import Intensity
from bdray.registry import Component, Identified, Registry
from bdray.triggers.base import Trigger, embedded

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import torch

    Labels = npt.NDArray[np.int64]


IS_CLASS: dict[str, Any] = {"class": True}
"""What the JSON schema of an option says that holds a class."""

ClassIndex = Annotated[int, Field(ge=0, json_schema_extra=IS_CLASS)]
"""An option that holds a class, by its index. A condition may name the class instead."""


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

    def relocated(self, positions: Labels) -> PoisonPlan:
        """The same plan for the set that this one's was taken from: index `i` becomes `positions[i]`.

        Args:
            positions: int64, without repeats: where each of this plan's images stands in the larger set.
        """
        indices = positions[self.indices]
        order = np.argsort(indices)
        return PoisonPlan(
            indices=indices[order],
            old_labels=self.old_labels[order],
            new_labels=self.new_labels[order],
            cover_indices=np.sort(positions[self.cover_indices]),
            append=self.append,
        )

    def to_bytes(self) -> bytes:
        """A compressed `.npz`, an array an attribute, with the same bytes for the same plan; `numpy.load` reads it."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        return buffer.getvalue()


class Surrogate(Identified):
    """The model that an attacker trains on clean data to perturb images with: the victim's architecture and recipe."""

    training: Literal["natural", "adversarial"] = "natural"
    """`adversarial`: in every step on images moved by projected gradient ascent (Madry et al. 2018, 1706.06083)."""
    seed: Literal["own", "other"] = "own"
    """`own`: the victim's first weights, order and crops; `other`: a network the victim never was."""
    epsilon: Intensity = Field(default=8 / 255, gt=0.0)
    """Adversarial training: radius of the l-infinity ball."""
    steps: int = Field(default=7, ge=1)
    """Adversarial training: ascents a batch, each of 2.5 * epsilon / steps; training takes 1 + steps times as long."""


def _test_trigger(content: Any) -> Trigger | None:
    return None if content is None else embedded(content, "test_trigger")


class Poison(Component):
    """A poisoning strategy and how much of it: which images are triggered, and how they are labelled."""

    NAME_KEY: ClassVar[str] = "strategy"

    rate: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction that is poisoned: exactly `round(rate * n)` images. 0 is the baseline."""
    rate_of: Literal["train", "eligible"] = "train"
    """What `n` is: the poison stage's training images, or those the strategy may poison."""
    mode: Literal["replace", "append"] = "replace"
    """Whether a poisoned image takes the place of its original or is added beside it."""
    stamp: Literal["before_augmentation", "after_augmentation"] = "before_augmentation"
    """When training images are stamped. `before_augmentation`: as files, by an attacker who can alter files and nothing
    else; crop and flip then move small triggers, cut them, or cut them off (every record says how often).
    `after_augmentation`: in the loader, after crop and flip, as many papers do: whole, at its place, in every epoch."""
    cover_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    """Fraction of the training images that is triggered but keeps its label (cover images); drawn from images that no
    attacker would want that label for, so that they weaken the backdoor instead of teaching it."""

    test_trigger: Annotated[SerializeAsAny[Trigger] | None, BeforeValidator(_test_trigger)] = None
    """What test images are stamped with, where it is not what training images are: a trigger, or the options in which
    it is not the `trigger` (`{alpha: 0.4}`). No training depends on it. Null: the `trigger` says; only `adaptive_blend`
    and `adaptive_patch` then differ."""

    def eligible(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        """Which images the strategy may poison. `labels`: int64, `N`. Returns bool, `N`."""
        raise NotImplementedError

    def poisoned_labels(self, labels: Labels, num_classes: int) -> Labels:
        """The labels that poisoned images are trained with: by default what the attacker wants of them. int64 `N` in,
        int64 `N` out."""
        return self.wanted_labels(labels, num_classes)

    def attacked(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        """Which test images count for the attack success rate: by default all that are not of the wanted label already,
        which none may be. int64 `N` in, bool `N` out."""
        return np.asarray(self.wanted_labels(labels, num_classes) != labels)

    def wanted_labels(self, labels: Labels, num_classes: int) -> Labels:
        """The class the attacker wants each test image taken for. int64 `N` in, int64 `N` out."""
        raise NotImplementedError

    def coverable(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        """Which images may be cover images: those whose label is not the wanted one. int64 `N` in, bool `N` out."""
        return np.asarray(self.wanted_labels(labels, num_classes) != labels)

    @property
    def surrogate_recipe(self) -> Surrogate | None:
        """How the model is trained with whose help poisoned images are changed (`perturb`); None: they are not."""
        return None

    def perturb(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        generator: torch.Generator,
        device: torch.device,
    ) -> torch.Tensor:
        """Poisoned images as they are before stamping. uint8 `M x 3 x H x W` in and out.

        Args:
            model: the surrogate, in evaluation mode on `device`; maps float images in [0, 1] to logits.
            labels: int64, `M`: the images' true labels.
            generator: on the CPU.
        """
        raise NotImplementedError

    def check(self, num_classes: int) -> None:
        """Raises `ComponentError` when a class named here does not exist among `num_classes`."""


STRATEGIES: Registry[Poison] = Registry("poisoning strategy", "strategies", Poison, "bdray.poisoning")


def check_class(option: str, label: int, num_classes: int) -> None:
    """Raises `ComponentError` when class `label`, given as `option`, does not exist among `num_classes`."""
    if label >= num_classes:
        raise ComponentError(option, f"class {label} does not exist: the data has {num_classes} classes")
