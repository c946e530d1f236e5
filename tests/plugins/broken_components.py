"""Components that break what `bdray.testing` checks, each in one way."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from bdray.models.networks.taps import Outputs
from bdray.poisoning import STRATEGIES, Poison
from bdray.regularizers import REGULARIZERS, Regularizer
from bdray.repairs import REPAIRS, Batch, Objective, Operation, Repair, Training
from bdray.testing import CLASSES
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

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: Any) -> torch.Tensor:
        return outputs.logits.float().sum() / 0


@REGULARIZERS.register("test_weightless")
class Weightless(Regularizer):
    """Forgets its weight."""

    SOURCE: ClassVar[str] = "a test"

    weight: float = 0.1

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: Any) -> torch.Tensor:
        return outputs.logits.float().square().mean()


@REGULARIZERS.register("test_idle")
class Idle(Regularizer):
    """Does nothing unless a space gives it a weight."""

    SOURCE: ClassVar[str] = "a test"

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: Any) -> torch.Tensor:
        return self.weight * outputs.logits.float().square().mean()


@REGULARIZERS.register("test_tosses")
class Tosses(Regularizer):
    """Decides by numpy's global generator how its layer begins."""

    SOURCE: ClassVar[str] = "a test"

    weight: float = 0.1

    def make_state(self) -> torch.nn.Module:
        layer = torch.nn.Linear(CLASSES, 1)
        torch.nn.init.constant_(layer.weight, np.random.rand())  # noqa: NPY002 - the fault
        return layer

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: Any) -> torch.Tensor:
        noise: torch.Tensor = state(outputs.logits.float())
        return self.weight * noise.mean()


@REGULARIZERS.register("test_jitters")
class Jitters(Regularizer):
    """Adds noise of torch's global generator to the logits it squares."""

    SOURCE: ClassVar[str] = "a test"

    weight: float = 0.1

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: Any) -> torch.Tensor:
        logits = outputs.logits.float()
        return self.weight * (logits + torch.randn_like(logits)).square().mean()


@REPAIRS.register("test_twice")
class Twice(Repair):
    """Two stages of one name."""

    SOURCE: ClassVar[str] = "a test"

    def stages(self, finetune: Any) -> Any:
        return [Operation("cut", result, {}, operate=lambda model, clean, tools: {}) for result in ("one", "two")]


class OneStage(Repair):
    """A repair of one operation, `operate`."""

    SOURCE: ClassVar[str] = "a test"
    STAGE: ClassVar[str] = "stage"

    def stages(self, finetune: Any) -> Any:
        return [Operation(self.STAGE, "done", self.identity(), operate=self.operate)]

    def operate(self, model: Any, clean: Any, tools: Any) -> Any:
        raise NotImplementedError


@REPAIRS.register("test_raises")
class Raises(OneStage):
    """Only raises."""

    def operate(self, model: Any, clean: Any, tools: Any) -> Any:
        raise RuntimeError("cannot be done")


@REPAIRS.register("test_shakes")
class Shakes(OneStage):
    """Draws from numpy's global generator."""

    def operate(self, model: Any, clean: Any, tools: Any) -> Any:
        return {"drawn": float(np.random.rand())}  # noqa: NPY002 - its fault


class Moods:
    """How often it was called."""

    count = 0


@REPAIRS.register("test_moody")
class Moody(OneStage):
    """Remembers what it did."""

    STAGE: ClassVar[str] = "moody"

    def operate(self, model: Any, clean: Any, tools: Any) -> Any:
        Moods.count += 1
        model.fc.bias.data.add_(Moods.count)
        return {}


@REPAIRS.register("test_grows")
class Grows(OneStage):
    """Leaves behind what no fresh network has."""

    STAGE: ClassVar[str] = "grow"

    def operate(self, model: Any, clean: Any, tools: Any) -> Any:
        model.register_buffer("grown", torch.zeros(1))
        return {}


@REPAIRS.register("test_chats")
class Chats(OneStage):
    """Says what no record holds."""

    STAGE: ClassVar[str] = "chat"

    def operate(self, model: Any, clean: Any, tools: Any) -> Any:
        return {"said": "hello"}


class Wavering(Objective):
    """Draws from torch's global generator in every step."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return batch.cross_entropy * torch.rand(())


class Falling(Objective):
    """A loss that is no number."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return batch.cross_entropy / 0


@REPAIRS.register("test_wavers")
class Wavers(Repair):
    """Draws from torch's global generator while it trains."""

    SOURCE: ClassVar[str] = "a test"

    def stages(self, finetune: Any) -> Any:
        return [Training(finetune, "waver", "wavered", Wavering(), self.identity())]


@REPAIRS.register("test_bottomless")
class Bottomless(Repair):
    """Divides by nothing."""

    SOURCE: ClassVar[str] = "a test"

    def stages(self, finetune: Any) -> Any:
        return [Training(finetune, "fall", "fallen", Falling(), self.identity())]
