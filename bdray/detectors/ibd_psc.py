"""IBD-PSC: a triggered picture keeps its prediction when the scales of the last normalisations are raised."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, InputDetector
from bdray.detectors.tools import DetectorTools, Labelled, Pictures
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.detectors.base import Score


@DETECTORS.register("ibd_psc")
class ParameterScaledConsistency(InputDetector):
    """The mean probability that copies of the model give to what the model itself takes a picture for. In the first
    copy scale and shift of the last k batch normalisations are multiplied by `factor`, in the next of the last k + 1,
    and so on; k is the least with which the copy gets more than `wrong` of the clean set wrong. (The
    authors' code goes on from there, and begins with k + 1.)
    """

    SOURCE: ClassVar[str] = "Hou, Feng, Hua, Luo, Zhang & Li 2024 (IBD-PSC, arXiv 2405.09786)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"clean share", "labels", "weights"})

    copies: int = Field(default=5, ge=1)
    """Of the model (`n` in the paper)."""
    factor: float = Field(default=1.5, gt=1.0)
    """What scales and shifts are multiplied by (`omega`)."""
    wrong: float = Field(default=0.6, ge=0.0, lt=1.0)
    """Part of the clean set that the first copy gets wrong (`xi`)."""
    limit: float = Field(default=0.9, ge=0.0, le=1.0)
    """Score above which a picture is flagged (`T`)."""

    def fit(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> Score:
        import torch

        copies = self.amplified(model, clean, tools)

        def score(pictures: Pictures) -> torch.Tensor:
            said = tools.outputs(model, pictures).logits.argmax(1)
            kept = []
            for done, one in enumerate(copies, 1):
                odds = tools.outputs(one, pictures).logits.double().softmax(1)
                kept.append(odds.gather(1, said[:, None])[:, 0])
                tools.tick(done, len(copies))
            return torch.stack(kept).mean(0)

        return score

    def threshold(self, clean_scores: torch.Tensor) -> float:
        return self.limit

    def amplified(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> list[nn.Module]:
        """The copies, the one that is changed least first.

        Raises:
            ValueError: there are no batch normalisations.
        """
        total = len(_norms(model))
        if not total:
            raise ValueError("ibd_psc needs batch normalisation; here is none")
        first = next((count for count in range(1, total) if self._fails(model, count, clean, tools)), total)
        # Where so many normalisations do not exist, copies are alike.
        counts = [min(first + more, total) for more in range(self.copies)]
        return [self._scaled(model, count) for count in counts]

    def _fails(self, model: nn.Module, count: int, clean: Labelled, tools: DetectorTools) -> bool:
        said = tools.outputs(self._scaled(model, count), clean.images).logits.argmax(1)
        return float((said != clean.labels).double().mean()) > self.wrong

    def _scaled(self, model: nn.Module, count: int) -> nn.Module:
        """A copy whose last `count` normalisations have other scales and shifts."""
        import torch

        other = copy.deepcopy(model)
        with torch.no_grad():
            for norm in _norms(other)[-count:]:
                norm.weight.mul_(self.factor)
                norm.bias.mul_(self.factor)
        return other


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    from torch import nn

    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
