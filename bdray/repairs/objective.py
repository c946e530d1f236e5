"""What a stage that trains makes small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.models.networks.taps import Outputs


@dataclass(frozen=True)
class Batch:
    """One batch that a stage trains on.

    Attributes:
        model: in training mode.
        images: augmented (mixed too, where `augment: cutmix` does) and normalised, float32, `N x 3 x S x S`.
        labels: int64, `N`.
        outputs: of one forward pass of `model`, with the activations that `Objective.capture` names.
        cross_entropy: of these, the mean over the batch; smoothed as the recipe says.
        state: what `Objective.begin` gave.
        generator: on the device of the model; of the condition's stream `repair` for this stage and epoch.
        autocast: the context that forward passes run in.
        normalize: float images in [0, 1] to what the network takes.
        beside: one more forward pass of `model`, of the batch and of pictures like `images` (float32, `M x 3 x S x S`)
            after it, so that both share batch statistics: `cross_entropy` of the batch and the others' logits (float32,
            `M x K`).
    """

    model: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    outputs: Outputs
    cross_entropy: torch.Tensor
    state: nn.Module | None
    generator: torch.Generator
    autocast: Callable[[], AbstractContextManager[object]]
    normalize: Callable[[torch.Tensor], torch.Tensor]
    beside: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Objective:
    """Cross-entropy, of all parameters that the recipe names, by plain steps. Others extend it.

    It holds options only: what changes while a stage runs belongs to the model or to the state of `begin`, because both
    are in the checkpoints.
    """

    def prepare(self, model: nn.Module) -> None:
        """Gives a fresh model the structure that training needs and leaves behind (as `Operation.prepare`)."""

    def capture(self, model: nn.Module) -> Sequence[str]:
        """Points whose activations `loss` needs: names of the network's mixing points (`model.taps.points`)."""
        return ()

    def begin(self, model: nn.Module, before: nn.Module, generator: torch.Generator) -> nn.Module | None:
        """Called once, before the first step; what it does to the model is where training starts.

        Args:
            model: about to be trained.
            before: as the stage before left it; `model` itself, unless the stage starts elsewhere.
            generator: on the CPU; of the condition's stream `repair` for this stage.

        Returns:
            What the objective needs while it trains (a teacher, running sums); on the device of the model. Its state
            dict is part of checkpoints.
        """
        return None

    def parameters(self, model: nn.Module, state: nn.Module | None) -> Sequence[nn.Parameter] | None:
        """What is trained, of the model or of the state; None: the parameters that the recipe names."""
        return None

    def loss(self, batch: Batch) -> torch.Tensor:
        """What is made small: a float32 number with a gradient. Must not wait for the device."""
        return batch.cross_entropy

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, evaluate: Callable[[], torch.Tensor]) -> None:
        """One step of the optimizer.

        Args:
            evaluate: the loss of this step's batch, by a forward pass of the model as it is now; may be called more
                than once. The first is what the record says.
        """
        loss = evaluate()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def after_step(self, model: nn.Module, state: nn.Module | None) -> None:
        """Follows every step (a projection, say), without gradients."""

    def finish(self, model: nn.Module, state: nn.Module | None) -> None:
        """Follows the last step of the last epoch, without gradients: what is then evaluated and kept."""
