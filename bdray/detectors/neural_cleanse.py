"""Neural Cleanse: the trigger that leads everything to a backdoor's target is far smaller than any to other classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, ModelDetector
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn


@DETECTORS.register("neural_cleanse")
class NeuralCleanse(ModelDetector):
    """For each class, the smallest mask (sum of its values in [0, 1]) and pattern found that lead clean pictures to it;
    the index is how far below the median the sum lies, in median absolute deviations times 1.4826.

    The weight of the mask's size in the loss is raised while the trigger leads `reached` of the pictures there, which
    is counted after each epoch, and lowered while it does not. A class to which none leads has the last mask.
    """

    SOURCE: ClassVar[str] = "Wang et al. 2019 (Neural Cleanse); the number of epochs is our choice"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"clean share", "weights"})

    epochs: int = Field(default=20, ge=1)
    """Passes over the clean set for each class."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures a step."""
    lr: float = Field(default=0.1, gt=0.0)
    """Of Adam (betas 0.5 and 0.9)."""
    reached: float = Field(default=0.99, gt=0.0, le=1.0)
    """Part of the clean pictures that a trigger must lead to the class."""
    weight: float = Field(default=1e-3, gt=0.0)
    """Of the mask's size in the loss, at the beginning."""
    patience: int = Field(default=5, ge=1)
    """Epochs that the weight waits before it is doubled, or divided by 2 to the power of 1.5."""
    limit: float = Field(default=2.0, gt=0.0)
    """Index above which a class is flagged."""

    def score(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> torch.Tensor:
        import torch

        images = torch.cat(list(clean.images.split(1000))).to(tools.device)
        sizes = []
        for label in range(tools.num_classes):
            mask, _ = self.reverse(model, label, images, tools)
            sizes.append(mask.double().sum().cpu())
            tools.tick(label + 1, tools.num_classes)
        return size_indices(torch.stack(sizes))

    def flagged(self, scores: torch.Tensor) -> torch.Tensor:
        return scores > self.limit

    def reverse(
        self, model: nn.Module, label: int, images: torch.Tensor, tools: DetectorTools
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask (float32, `1 x S x S`) and pattern (float32, `3 x S x S`), both in [0, 1], that lead to a class.

        Args:
            images: clean, uint8, `N x 3 x S x S`, on the device.
        """
        import torch
        from torch.nn.functional import cross_entropy

        side = images.shape[-1]
        drawn = torch.rand((4, side, side), generator=tools.generator).to(tools.device)
        # As the logarithm of the odds, so that both stay within [0, 1].
        raw = drawn.clamp(1e-3, 1 - 1e-3).logit().requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=self.lr, betas=(0.5, 0.9))
        weight, up, down = self.weight, 0, 0
        best, smallest = raw.detach().sigmoid(), float("inf")
        for _ in range(self.epochs):
            order = torch.randperm(len(images), generator=tools.generator).to(tools.device)
            for chosen in order.split(self.batch_size):
                mask, pattern = raw[:1].sigmoid(), raw[1:].sigmoid()
                logits = tools.logits(model, stamped(images[chosen], mask, pattern))
                wanted = torch.full((len(chosen),), label, device=tools.device)
                (raw.grad,) = torch.autograd.grad(cross_entropy(logits, wanted) + weight * mask.sum(), raw)
                optimizer.step()
            with torch.no_grad():
                found = raw.sigmoid()
                seen = (tools.logits(model, stamped(part, found[:1], found[1:])) for part in images.split(500))
                hits = torch.cat([logits.argmax(1) == label for logits in seen]).double().mean()
            works, size = float(hits) >= self.reached, float(found[:1].sum())
            if (works and size < smallest) or smallest == float("inf"):
                best, smallest = found, size if works else smallest
            up, down = (up + 1, 0) if works else (0, down + 1)
            if up >= self.patience:
                weight, up = weight * 2, 0
            elif down >= self.patience:
                weight, down = weight / 2**1.5, 0
        return best[:1], best[1:]


def stamped(images: torch.Tensor, mask: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """uint8 images with as much of the pattern as the mask says: float32 in [0, 1]."""
    return images.float() / 255 * (1 - mask) + pattern * mask


def size_indices(sizes: torch.Tensor) -> torch.Tensor:
    """(median - size) / (1.4826 x median absolute deviation): float64, `K`; 0 where all but single ones are alike.

    Args:
        sizes: float64, `K`.
    """
    import torch

    middle = sizes.quantile(0.5)
    deviation = 1.4826 * (sizes - middle).abs().quantile(0.5)
    return (middle - sizes) / deviation if deviation > 0 else torch.zeros_like(sizes)
