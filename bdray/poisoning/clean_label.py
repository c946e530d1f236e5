"""Clean-label poisoning: triggered images of the target class keep their label."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bdray.errors import ComponentError
from bdray.intensity import Intensity, whole_levels
from bdray.poisoning.base import STRATEGIES, ClassIndex, Poison, Surrogate, check_class

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import torch

    from bdray.poisoning.base import Labels


@STRATEGIES.register("clean_label")
class CleanLabel(Poison):
    """Poisons images of the target class alone and keeps their labels, so that no label looks wrong.

    At test time it is attacked like all-to-one: whatever carries the trigger should become the target.
    """

    SOURCE: ClassVar[str] = "Turner et al. 2019, arXiv 1912.02771; steps and step size are our choice"
    VERSION: ClassVar[int] = 2

    target: ClassIndex = 0
    """The class the attacker wants, and the only one that is poisoned."""
    perturbation: Literal["none", "pgd"] = "none"
    """`pgd`: before stamping, poisoned images are moved away from their class by projected gradient ascent on the loss
    of a surrogate model, so that the trigger is what is left to learn."""
    epsilon: Intensity = Field(default=8 / 255, gt=0.0)
    """Radius of the l-infinity ball around the original."""
    steps: int = Field(default=20, ge=1)
    """Of gradient ascent."""
    step_size: Intensity = Field(default=2 / 255, gt=0.0)
    """How far a step moves each pixel, of the range 0 to 1."""
    surrogate: Surrogate = Surrogate()
    """Whose loss is raised. Turner et al. use an adversarially trained network that is not the victim's
    (`{training: adversarial, seed: other}`); the default, the victim's own twin on clean data, is our choice."""

    @model_validator(mode="after")
    def _perturbs(self) -> CleanLabel:
        if self.perturbation == "pgd" and not whole_levels(self.epsilon):
            problem = f"{self.epsilon:g} comes to 0 levels of 255; the smallest that is not nothing is {1 / 255:.3g}"
            raise ComponentError("epsilon", problem)
        return self

    def eligible(self, labels: Labels, num_classes: int) -> npt.NDArray[np.bool_]:
        return np.asarray(labels == self.target)

    def poisoned_labels(self, labels: Labels, num_classes: int) -> Labels:
        return labels.copy()

    def wanted_labels(self, labels: Labels, num_classes: int) -> Labels:
        return np.full_like(labels, self.target)

    @property
    def surrogate_recipe(self) -> Surrogate | None:
        return self.surrogate if self.perturbation == "pgd" else None

    def perturb(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        generator: torch.Generator,
        device: torch.device,
    ) -> torch.Tensor:
        from bdray.poisoning.pgd import perturb

        return perturb(
            model,
            images,
            labels,
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.steps,
            generator=generator,
            device=device,
        )

    def check(self, num_classes: int) -> None:
        check_class("target", self.target, num_classes)
