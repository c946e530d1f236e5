"""Which clean model a condition perturbs its poisoned images with. Needs no torch: planning asks too."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bdray.condition import Condition, PlannedStage, digest
from bdray.poisoning.base import Surrogate
from bdray.poisoning.pgd import Adversary
from bdray.seeds import derive_seed


@dataclass(frozen=True)
class PlannedSurrogate:
    """A model to be trained on clean data.

    Attributes:
        condition: the baseline it is trained as.
        stage: its training; shared by all conditions with the same surrogate, and with a baseline that is trained so.
    """

    recipe: Surrogate
    condition: Condition
    stage: PlannedStage

    @property
    def adversary(self) -> Adversary | None:
        """What moves the images in every step of its training."""
        is_natural = self.recipe.training == "natural"
        return None if is_natural else Adversary(self.recipe.epsilon, self.recipe.steps)

    def describe(self, clean_accuracy: float) -> str:
        """For the record's `environment`."""
        return (
            f"{self.recipe.training} training, {self.recipe.seed} seed, stage {self.stage.fingerprint}, "
            f"clean accuracy {clean_accuracy:.4f}"
        )


def surrogate_of(condition: Condition) -> PlannedSurrogate | None:
    """The surrogate of a condition; None where nothing is perturbed."""
    recipe = condition.poison.surrogate_recipe
    return None if recipe is None or condition.is_baseline else plan_surrogate(condition, recipe)


def plan_surrogate(condition: Condition, recipe: Surrogate) -> PlannedSurrogate:
    """The surrogate that a recipe makes of a condition."""
    twin = condition.baseline()
    if recipe.seed == "other":
        twin = Condition.parse({**twin.content(), "seed": derive_seed(condition.seed, "poison", "surrogate")})
    stage = twin.stages[0]
    if recipe.training == "adversarial":
        named = {"after": stage.fingerprint, "epsilon": recipe.epsilon, "steps": recipe.steps}
        stage = replace(stage, fingerprint=digest({**named, "stage": "adversarial"}))
    return PlannedSurrogate(recipe, twin, stage)
