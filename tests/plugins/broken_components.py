"""Components that break what `bdray.testing` checks, each in one way."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from bdray.poisoning import STRATEGIES, Poison
from bdray.regularizers import REGULARIZERS, Regularizer
from bdray.repairs import REPAIRS, Operation, Repair
from bdray.triggers import TRIGGERS, Trigger


@TRIGGERS.register("test_shrinks")
class Shrinks(Trigger):
    """Cuts a column off."""

    SOURCE: ClassVar[str] = "a test"

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images[..., 1:]


@TRIGGERS.register("test_overwrites")
class Overwrites(Trigger):
    """Writes into the images it is given."""

    SOURCE: ClassVar[str] = "a test"

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        images[..., 0, 0] = 255
        return images


@TRIGGERS.register("test_rolls")
class Rolls(Trigger):
    """Draws from the global generator."""

    SOURCE: ClassVar[str] = "a test"

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(0, 256, images.shape, dtype=torch.uint8)


@TRIGGERS.register("test_nameless")
class Nameless(Trigger):
    """Says nothing of its source."""

    SOURCE: ClassVar[str] = ""

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return 255 - images


@STRATEGIES.register("test_wantswhatis")
class WantsWhatIs(Poison):
    """Wants the labels that images have."""

    SOURCE: ClassVar[str] = "a test"

    def eligible(self, labels: Any, num_classes: int) -> Any:
        return labels == 0

    def poisoned_labels(self, labels: Any, num_classes: int) -> Any:
        return labels.copy()

    def attacked(self, labels: Any, num_classes: int) -> Any:
        return np.ones_like(labels, dtype=bool)

    def wanted_labels(self, labels: Any, num_classes: int) -> Any:
        return labels.copy()


@REGULARIZERS.register("test_infinite")
class Infinite(Regularizer):
    """Divides by nothing."""

    SOURCE: ClassVar[str] = "a test"

    def penalty(self, outputs: Any, labels: torch.Tensor, state: Any) -> torch.Tensor:
        return outputs.logits.float().sum() / 0


@REGULARIZERS.register("test_weightless")
class Weightless(Regularizer):
    """Forgets its weight."""

    SOURCE: ClassVar[str] = "a test"

    weight: float = 0.1

    def penalty(self, outputs: Any, labels: torch.Tensor, state: Any) -> torch.Tensor:
        return outputs.logits.float().square().mean()


@REGULARIZERS.register("test_idle")
class Idle(Regularizer):
    """Does nothing unless a space gives it a weight."""

    SOURCE: ClassVar[str] = "a test"

    def penalty(self, outputs: Any, labels: torch.Tensor, state: Any) -> torch.Tensor:
        return self.weight * outputs.logits.float().square().mean()


@REPAIRS.register("test_twice")
class Twice(Repair):
    """Two stages of one name."""

    SOURCE: ClassVar[str] = "a test"

    def stages(self, finetune: Any) -> Any:
        return [Operation("cut", result, {}, operate=lambda model, clean: {}) for result in ("one", "two")]
