"""STRIP: a triggered picture keeps its prediction, whatever is laid over it."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, InputDetector
from bdray.detectors.tools import DetectorTools, Labelled, Pictures
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.detectors.base import Score


PICTURES_AT_ONCE = 500
"""In one pass through the model: more gain nothing, and take memory (our choice)."""


@DETECTORS.register("strip")
class Strip(InputDetector):
    """Minus the mean entropy (in nats) of the predictions for a picture with clean pictures laid over it: the sum of
    both, cut at white. The threshold is the quantile of a normal distribution with the clean set's mean and
    deviation.
    """

    SOURCE: ClassVar[str] = "Gao et al. 2019 (STRIP)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"clean share", "logits only"})

    overlays: int = Field(default=100, ge=1)
    """Clean pictures that are laid over each; drawn for each picture."""
    false_positives: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Part of the clean set that its own threshold may flag: the paper's false rejection rate."""

    def fit(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> Score:
        import torch

        overlays = torch.cat(list(clean.images.split(1000))).to(tools.device)
        generator = tools.generator

        def score(pictures: Pictures) -> torch.Tensor:
            scores: list[torch.Tensor] = []
            for batch in pictures.split(max(1, PICTURES_AT_ONCE // self.overlays)):
                # Picture by picture, as they come: what is drawn for one does not depend on the batch it is in.
                drawn = [torch.randint(len(overlays), (self.overlays,), generator=generator) for _ in batch]
                chosen = overlays[torch.stack(drawn).to(tools.device)]
                mixed = superimposed(batch.to(tools.device)[:, None], chosen)
                logits = tools.outputs(model, mixed.flatten(0, 1)).logits
                scores.append(-mean_entropy(logits.view(len(batch), self.overlays, -1)))
                tools.tick(sum(map(len, scores)), len(pictures))
            return torch.cat(scores)

        return score

    def threshold(self, clean_scores: torch.Tensor) -> float:
        spread = float(clean_scores.std())
        mean = float(clean_scores.mean())
        return NormalDist(mean, spread).inv_cdf(1 - self.false_positives) if spread > 0 else mean


def superimposed(images: torch.Tensor, overlays: torch.Tensor) -> torch.Tensor:
    """The sum of pictures and others, cut at 255: uint8. Both uint8 `... x 3 x S x S`, one shape or spread to it."""
    import torch

    return (images.int() + overlays.int()).clamp(max=255).to(torch.uint8)


def mean_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean over `N` of the entropy of softmax, in nats: float64, `...`. `logits`: float, `... x N x K`."""
    log = logits.double().log_softmax(-1)
    return -(log.exp() * log).sum(-1).mean(-1)
