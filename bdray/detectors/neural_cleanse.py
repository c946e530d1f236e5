"""Neural Cleanse: the trigger that leads everything to a backdoor's target is far smaller than any to other classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, ModelDetector
from bdray.detectors.tools import DetectorTools, Labelled, weights_at_rest
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn


PICTURES_AT_ONCE = 500
"""In one pass through the model: more gain nothing, and take memory (our choice)."""


@DETECTORS.register("neural_cleanse")
class NeuralCleanse(ModelDetector):
    """For each class, the smallest mask (sum of its values in [0, 1]) and pattern found that lead clean pictures to it;
    the index is how far below the median the sum lies, in median absolute deviations times 1.4826.

    The weight of the mask's size in the loss is raised while the trigger leads `reached` of the pictures there, which
    is counted after each epoch, and lowered while it does not. A class to which none leads has the last mask.
    Of two classes none can lie far below the median, so that none is flagged.
    """

    SOURCE: ClassVar[str] = "Wang et al. 2019 (Neural Cleanse); the number of epochs is our choice"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"clean share", "weights"})
    VERSION: ClassVar[int] = 2  # in the first, Adam moved 2 x, so that its steps were half as long

    epochs: int = Field(default=20, ge=1)
    """Passes over the clean set for each class."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures a step."""
    lr: float = Field(default=0.1, gt=0.0)
    """Of Adam (betas 0.5 and 0.9) on x, of which masks and patterns are (tanh(x) + 1) / 2, as in the paper's code."""
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

        masks, patterns = self.triggers(model, torch.cat(list(clean.images.split(1000))).to(tools.device), tools)
        tools.show(masks * patterns)
        return size_indices(masks.double().sum((1, 2, 3)).cpu())

    def flagged(self, scores: torch.Tensor) -> torch.Tensor:
        return scores > self.limit

    def triggers(
        self, model: nn.Module, images: torch.Tensor, tools: DetectorTools
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For every class a mask (float32, `K x 1 x S x S`) and a pattern (float32, `K x 3 x S x S`), in [0, 1].

        Args:
            images: clean, uint8, `N x 3 x S x S`, on the device.
        """
        import torch

        # As many classes at once as make a batch of some size: a step for one has too little to do.
        labels = torch.arange(tools.num_classes).split(max(1, PICTURES_AT_ONCE // self.batch_size))
        found = []
        for together in labels:
            with weights_at_rest(model):
                found.append(self.reverse(model, together.tolist(), images, tools))
            tools.tick(int(together[-1]) + 1, tools.num_classes)
        masks, patterns = zip(*found, strict=True)
        return torch.cat(masks), torch.cat(patterns)

    def reverse(
        self, model: nn.Module, labels: list[int], images: torch.Tensor, tools: DetectorTools
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks (float32, `L x 1 x S x S`) and patterns (float32, `L x 3 x S x S`) that lead to each of the classes.
        The classes are computed side by side, each from what it would draw if it came by itself.

        Args:
            images: clean, uint8, `N x 3 x S x S`, on the device.
        """
        import torch

        raw, orders = self._drawn(len(labels), images, tools)
        # Each class has its own denominators: a step for one does not depend on the others.
        optimizer = torch.optim.Adam([raw], lr=self.lr, betas=(0.5, 0.9))
        wanted = torch.tensor(labels, device=tools.device)
        searches = [_Search(self.weight) for _ in labels]
        best = _in_range(raw.detach())
        for epoch in range(self.epochs):
            weights = torch.tensor([search.weight for search in searches], device=tools.device)
            for chosen in orders[:, epoch].split(self.batch_size, dim=1):
                now = _in_range(raw)
                errors = self._errors(model, now, wanted, images[chosen], tools)
                loss = (errors + weights * now[:, 0].sum((1, 2))).sum()
                (raw.grad,) = torch.autograd.grad(loss, raw)
                optimizer.step()
            with torch.no_grad():
                found = _in_range(raw)
                hits, sizes = self._hits(model, found, wanted, images, tools), found[:, :1].sum((1, 2, 3))
            better = [
                search.hears(hit >= self.reached, size, self.patience)
                for search, hit, size in zip(searches, hits.tolist(), sizes.tolist(), strict=True)
            ]
            best = torch.where(torch.tensor(better, device=tools.device).view(-1, 1, 1, 1), found, best)
        return best[:, :1], best[:, 1:]

    def _drawn(self, classes: int, images: torch.Tensor, tools: DetectorTools) -> tuple[torch.Tensor, torch.Tensor]:
        """Where masks and patterns begin, as x of (tanh(x) + 1) / 2, so that both stay within [0, 1]: float32,
        `L x 4 x S x S`; and the order of the pictures, int64, `L x epochs x N`; on the device, class by class."""
        import torch

        side, starts, orders = images.shape[-1], [], []
        for _ in range(classes):
            starts.append(torch.rand((4, side, side), generator=tools.generator))
            each = [torch.randperm(len(images), generator=tools.generator) for _ in range(self.epochs)]
            orders.append(torch.stack(each))
        begun = torch.stack(starts).to(tools.device).clamp(1e-3, 1 - 1e-3).logit() / 2
        return begun.requires_grad_(), torch.stack(orders).to(tools.device)

    def _errors(
        self, model: nn.Module, now: torch.Tensor, wanted: torch.Tensor, images: torch.Tensor, tools: DetectorTools
    ) -> torch.Tensor:
        """For every class the cross-entropy of what the trigger leads to it: float32, `L`. `images`: `L x n x 3 x S x
        S`."""
        from torch.nn.functional import cross_entropy

        mask, pattern = now[:, None, :1], now[:, None, 1:]
        logits = tools.logits(model, stamped(images, mask, pattern).flatten(0, 1))
        errors = cross_entropy(logits, wanted.repeat_interleave(images.shape[1]), reduction="none")
        return errors.view(len(wanted), -1).mean(1)

    def _hits(
        self, model: nn.Module, found: torch.Tensor, wanted: torch.Tensor, images: torch.Tensor, tools: DetectorTools
    ) -> torch.Tensor:
        """What part of the pictures each trigger leads to its class: float64, `L`."""
        import torch

        mask, pattern = found[:, None, :1], found[:, None, 1:]
        seen = []
        for part in images.split(max(1, PICTURES_AT_ONCE // len(wanted))):
            logits = tools.logits(model, stamped(part[None], mask, pattern).flatten(0, 1))
            seen.append(logits.argmax(1).view(len(wanted), -1) == wanted[:, None])
        return torch.cat(seen, 1).double().mean(1)


def _in_range(raw: torch.Tensor) -> torch.Tensor:
    return (raw.tanh() + 1) / 2


@dataclass
class _Search:
    """How far the search for one class is: the weight of the mask's size, and for how many epochs it has waited."""

    weight: float
    up: int = 0
    down: int = 0
    smallest: float = math.inf

    def hears(self, works: bool, size: float, patience: int) -> bool:
        """Takes note of an epoch; says whether its trigger is the best so far."""
        is_better = (works and size < self.smallest) or self.smallest == math.inf
        if is_better and works:
            self.smallest = size
        self.up, self.down = (self.up + 1, 0) if works else (0, self.down + 1)
        if self.up >= patience:
            self.weight, self.up = self.weight * 2, 0
        elif self.down >= patience:
            self.weight, self.down = self.weight / 2**1.5, 0
        return is_better


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
