"""What a repair is: a list of stages that a trained model goes through.

A stage either trains (`Training`: by the loop that also poisons, with its checkpoints, towards an `Objective`) or
changes the model at once (`Operation`). After each of its epochs, or after the operation, the model is evaluated like
after poisoned training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bdray.detectors.base import TrainingSetDetector
from bdray.recipes import Finetune
from bdray.registry import Component, Registry, Sight
from bdray.repairs.objective import Objective
from bdray.repairs.tools import CleanData, Tools

if TYPE_CHECKING:
    from torch import nn

Details = Mapping[str, float | list[int]]
"""What an operation says of itself, for the record."""


@dataclass(frozen=True)
class Among:
    """Which samples of the poisoned training set a stage trains on: those that a detector leaves, or those it flags. It
    is asked once, before the first step, and sees neither plan nor trigger.

    Attributes:
        flagged: train on what it flags, not on what it leaves.
        of: the result of the stage whose model it is asked of.
        part: about what part of the set that is, for forecasts.
    """

    detector: TrainingSetDetector
    flagged: bool = False
    of: str = "poisoned"
    part: float = 1.0

    def identity(self) -> dict[str, Any]:
        return {"detector": self.detector.identity(), "flagged": self.flagged, "of": self.of}


@dataclass(frozen=True)
class Training:
    """A stage that trains.

    Attributes:
        name: of the stage; part of every stream it draws from.
        result: what the model is afterwards; the prefix of its metrics ("finetuned/clean_accuracy").
        objective: what is made small.
        content: JSON content that decides what an objective of one's own does: the stage's fingerprint is made of it.
        data: the clean set, or what the poison stage was trained on, with its labels and its poison as they are.
        start: from the model as the stage before left it, from the one that was poisoned, or from a fresh one.
        among: which of the poisoned samples it trains on; None: all.
    """

    recipe: Finetune
    name: str = "finetune"
    result: str = "finetuned"
    objective: Objective = field(default_factory=Objective)
    content: Mapping[str, Any] = field(default_factory=dict)
    data: Literal["clean", "poisoned"] = "clean"
    start: Literal["current", "poisoned", "fresh"] = "current"
    among: Among | None = None

    def __post_init__(self) -> None:
        if type(self.objective) is not Objective and not self.content:
            raise ValueError(f"the stage '{self.name}' has an objective of its own, and no content that says which")
        if self.among is not None and self.data != "poisoned":
            raise ValueError(f"the stage '{self.name}' chooses among poisoned samples, and trains on clean ones")

    def prepare(self, model: nn.Module) -> None:
        """Gives a fresh model the structure that the objective needs."""
        self.objective.prepare(model)

    def identity(self) -> dict[str, Any]:
        own: dict[str, Any] = {"content": dict(self.content), "data": self.data, "start": self.start}
        usual = {"content": {}, "data": "clean", "start": "current"}
        unusual = {name: value for name, value in own.items() if value != usual[name]}
        if self.among is not None:
            unusual["among"] = self.among.identity()
        return {"stage": self.name, "recipe": self.recipe.identity(), **unusual}


@dataclass(frozen=True)
class Operation:
    """A stage that changes the model without training it.

    Attributes:
        name, result: as in `Training`.
        content: JSON content that decides what `operate` does: the stage's fingerprint is made of it.
        operate: does it to the model, in place, with the clean set; says how it went.
        prepare: gives a fresh model the structure that `operate` expects and leaves behind (buffers, hooks), so that
            the weights of a kept stage can be loaded into it.
    """

    name: str
    result: str
    content: Mapping[str, Any]
    operate: Callable[[nn.Module, CleanData, Tools], Details]
    prepare: Callable[[nn.Module], None] = lambda model: None

    def identity(self) -> dict[str, Any]:
        return {"stage": self.name, "content": dict(self.content)}


RepairStage = Training | Operation


class Repair(Component):
    """What is done to a model after poisoned training.

    Class attributes:
        SEES: what the method has to see; methods that see more are no fair match for those that see less.
        USES_LABELS: whether a loss of its own looks at the label of each picture, which `augment: cutmix` mixes.
    """

    SEES: ClassVar[frozenset[Sight]] = frozenset({"clean share", "labels", "weights"})
    USES_LABELS: ClassVar[bool] = False

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        """The stages in their order; needs no torch.

        Args:
            finetune: the condition's clean set and recipe, which all repairs share.
        """
        raise NotImplementedError

    def uses_clean_data(self, finetune: Finetune) -> bool:
        """Whether a clean set is set aside. Where repairs disagree on this they may not share a poisoned model: the
        poison stage does without a held-out set that is larger than `data.clean_pool`."""
        return finetune.epochs > 0


REPAIRS: Registry[Repair] = Registry("repair", "repairs", Repair, "bdray.repairs")
