"""What a repair is: a list of stages that a trained model goes through.

A stage either trains (`Training`: by the loop that also poisons, with its checkpoints) or changes the model at once
(`Operation`). After each of its epochs, or after the operation, the model is evaluated like after poisoned training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bdray.recipes import Finetune
from bdray.registry import Component, Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.models.networks.taps import Outputs

Details = Mapping[str, float | list[int]]
"""What an operation says of itself, for the record."""


class CleanData(Protocol):
    """The clean set that a repair may use, on the device of the model."""

    @property
    def images(self) -> torch.Tensor:
        """uint8, `N x 3 x S x S`."""
        ...

    @property
    def labels(self) -> torch.Tensor:
        """True labels, int64, `N`."""
        ...

    def outputs(self, model: nn.Module) -> Outputs:
        """Logits and penultimate features of all clean images, float32, in evaluation mode and without gradients."""
        ...


@dataclass(frozen=True)
class Training:
    """A stage that trains the model on the clean set.

    Attributes:
        name: of the stage; part of every stream it draws from.
        result: what the model is afterwards; the prefix of its metrics ("finetuned/clean_accuracy").
    """

    recipe: Finetune
    name: str = "finetune"
    result: str = "finetuned"

    def identity(self) -> dict[str, Any]:
        return {"stage": self.name, "recipe": self.recipe.identity()}


@dataclass(frozen=True)
class Operation:
    """A stage that changes the model without training it.

    Attributes:
        name, result: as in `Training`.
        content: JSON content that decides what `operate` does: the stage's fingerprint is made of it.
        operate: does it, in place; says how it went.
        prepare: gives a fresh model the structure that `operate` expects and leaves behind (buffers, hooks), so that
            the weights of a kept stage can be loaded into it.
    """

    name: str
    result: str
    content: Mapping[str, Any]
    operate: Callable[[nn.Module, CleanData], Details]
    prepare: Callable[[nn.Module], None] = lambda model: None

    def identity(self) -> dict[str, Any]:
        return {"stage": self.name, "content": dict(self.content)}


RepairStage = Training | Operation


class Repair(Component):
    """What is done to a model after poisoned training."""

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
