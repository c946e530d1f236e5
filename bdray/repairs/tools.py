"""What a repair is handed beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bdray.gpu import to_device

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.models.networks.taps import Outputs


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


class Tick(Protocol):
    """Says how far an operation is."""

    def __call__(self, done: int, total: int, *, point: bool = False) -> None:
        """Shows `done` of `total`; with `point`, evaluates the model as it is now: a point of the stage's curve.

        Raises:
            TrialInterrupted: after a point, when the trial was asked to stop.
        """
        ...


@dataclass(frozen=True)
class Tools:
    """What an operation works with. All that is random in it comes from `generator`; dropout of a network in training
    mode draws from torch's global one, which is seeded before the operation.

    Attributes:
        generator: on the CPU; of the condition's stream `repair` for this stage.
        clean: the clean set.
        normalize: float images in [0, 1] to what the network takes.
        autocast: the context that forward passes run in.
        tick: says how far the operation is.
        max_batches: of the epochs and steps that an operation means to take, take no more than so many (rehearsals).
    """

    generator: torch.Generator
    clean: CleanData
    normalize: Callable[[torch.Tensor], torch.Tensor]
    autocast: Callable[[], AbstractContextManager[object]]
    tick: Tick
    max_batches: int | None = None

    def steps(self, count: int) -> Iterator[int]:
        """0, 1, ... below `count`, or as far as a rehearsal goes; says after each how far the operation is."""
        most = min(count, self.max_batches or count)
        for step in range(most):
            yield step
            self.tick(step + 1, most)

    def batches(self, batch_size: int, *, normalized: bool = True) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch of the clean set in an order drawn from `generator`, in near-equal batches, none of a single image:
        float32 `n x 3 x S x S`, normalised or in [0, 1], and int64 `n`, on the device."""
        import torch

        images, labels = self.clean.images, self.clean.labels
        count = max(1, min(-(-len(labels) // batch_size), len(labels) // 2))
        for order in torch.randperm(len(labels), generator=self.generator).tensor_split(count):
            rows = to_device(order, labels.device)
            pixels = images.index_select(0, rows).float().div_(255)
            yield self.normalize(pixels) if normalized else pixels, labels.index_select(0, rows)
