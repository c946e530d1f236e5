"""What a detector computes with: pictures, and what the model says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.models.networks.taps import Outputs


class Pictures(Protocol):
    """Pictures, a batch at a time; a uint8 tensor `N x 3 x S x S` is some."""

    def __len__(self) -> int: ...

    def split(self, size: int, /) -> Iterable[torch.Tensor]:
        """All of them in their order, as uint8 `size x 3 x S x S`; the last batch may be smaller."""
        ...


class Labelled(Protocol):
    """Pictures with labels as given: a training set, or the clean set."""

    @property
    def images(self) -> Pictures: ...

    @property
    def labels(self) -> torch.Tensor:
        """int64, `N`, on the host."""
        ...


@dataclass(frozen=True)
class DetectorTools:
    """What a detector computes with.

    Attributes:
        generator: on the host; a stream of the condition's seed that is the detector's own.
        device: of the model.
        normalize: float images in [0, 1] to what the model takes.
        autocast: the precision that the model was trained in.
        tick: hears how far this is (done, of how many); the listener may stop it by raising.
        clean: the clean set, where a detector of training sets sees one; empty where none is set aside.
        show: is given what a detector of models has found to lead pictures to each class, float32 in [0, 1],
            `K x 3 x S x S`; those of targets are kept beside the answer, for people to look at.
    """

    generator: torch.Generator
    num_classes: int
    device: torch.device
    normalize: Callable[[torch.Tensor], torch.Tensor]
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    tick: Callable[[int, int], None] = lambda done, total: None
    clean: Labelled | None = None
    show: Callable[[torch.Tensor], None] = lambda found: None

    def logits(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """float32, `N x K`, of float images in [0, 1] on the device, with gradients; the model's mode is left alone."""
        import torch

        pixels = self.normalize(images).contiguous(memory_format=torch.channels_last)
        with self.autocast():
            logits: torch.Tensor = model(pixels)
        return logits.float()

    def outputs(self, model: nn.Module, images: Pictures, batch_size: int = 500) -> Outputs:
        """Logits and penultimate features of all images, float32, on the host, in evaluation mode, no gradients."""
        import torch

        from bdray.models.networks.taps import Outputs, evaluating, forward_outputs

        logits, features = [], []
        with evaluating(model), torch.no_grad():
            for batch in images.split(batch_size):
                pixels = self.normalize(batch.to(self.device).float().div_(255))
                with self.autocast():
                    seen = forward_outputs(model, pixels.contiguous(memory_format=torch.channels_last))
                logits.append(seen.logits.float().cpu())
                features.append(seen.features.float().cpu())
                self.tick(sum(map(len, logits)), len(images))
        return Outputs(torch.cat(logits), torch.cat(features))


@contextmanager
def weights_at_rest(model: nn.Module) -> Iterator[None]:
    """No gradients of weights: a third less to compute where only those of pictures are asked for."""
    moving = [value for value in model.parameters() if value.requires_grad]
    for value in moving:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in moving:
            value.requires_grad_(True)
