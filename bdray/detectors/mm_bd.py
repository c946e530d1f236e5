"""MM-BD: the target class of a backdoor can be preferred by a margin that no other class reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, ModelDetector
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn


@DETECTORS.register("mm_bd")
class MaximumMargin(ModelDetector):
    """The largest margin of a class's logit over all others that gradient ascent finds over pictures, from random ones,
    against a gamma distribution fitted to the margins of the other classes. Needs no data.

    The index of a class with margin r is -log10(1 - F(r)^(K-1)); F is the distribution fitted to the K-1 others. For
    the class with the largest margin that is the paper's p-value.
    """

    SOURCE: ClassVar[str] = "Wang et al. 2024 (MM-BD); an index for every class is ours"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"weights"})

    starts: int = Field(default=30, ge=1)
    """Random pictures that ascent starts from, for each class."""
    steps: int = Field(default=300, ge=1)
    """Of gradient ascent."""
    lr: float = Field(default=0.01, gt=0.0)
    """Of gradient ascent, on values in [0, 1]."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Of gradient ascent."""
    p_value: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Below which a class is flagged."""

    def score(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> torch.Tensor:
        import torch

        side = next(iter(clean.images.split(1))).shape[-1]
        margins = []
        for label in range(tools.num_classes):
            start = torch.rand((self.starts, 3, side, side), generator=tools.generator).to(tools.device)
            margins.append(self._largest_margin(model, label, start, tools))
            tools.tick(label + 1, tools.num_classes)
        return margin_indices(torch.tensor(margins, dtype=torch.float64))

    def flagged(self, scores: torch.Tensor) -> torch.Tensor:
        return 10**-scores < self.p_value

    def _largest_margin(self, model: nn.Module, label: int, start: torch.Tensor, tools: DetectorTools) -> float:
        import torch

        images = start.requires_grad_()
        optimizer = torch.optim.SGD([images], lr=self.lr, momentum=self.momentum)
        others = [other for other in range(tools.num_classes) if other != label]

        def margins() -> torch.Tensor:
            logits = tools.logits(model, images)
            return logits[:, label] - logits[:, others].amax(1)

        for _ in range(self.steps):
            (images.grad,) = torch.autograd.grad(-margins().sum(), images)
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0, 1)
        with torch.no_grad():
            return float(margins().max())


def margin_indices(margins: torch.Tensor) -> torch.Tensor:
    """Minus the decimal logarithm of each class's p-value, at most 300: float64, `K`. `margins`: float64, `K`."""
    import numpy as np
    import torch
    from scipy.stats import gamma

    values = margins.numpy()
    found = np.zeros(len(values))
    for label, margin in enumerate(values):
        others = np.delete(values, label)
        if np.ptp(others) == 0:
            # No distribution can be fitted to a single value.
            found[label] = 300.0 if margin > others[0] else 0.0
            continue
        # Through the logarithm: 1 - F^(K-1) is 0 in float64 long before 1 - F is.
        with np.errstate(divide="ignore"):
            log_cdf = np.log1p(-gamma.sf(margin, *gamma.fit(others)))
        found[label] = 0.0 - np.log10(max(1e-300, -np.expm1(len(others) * log_cdf)))
    return torch.from_numpy(found)
