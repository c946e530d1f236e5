"""SCALE-UP: a triggered picture keeps its prediction when all its values are multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, InputDetector
from bdray.detectors.tools import DetectorTools, Labelled, Pictures
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.detectors.base import Score


@DETECTORS.register("scale_up")
class ScaleUp(InputDetector):
    """The part of a picture's multiples (values times each factor, cut at white) that are predicted as the picture
    itself: its scaled prediction consistency, without a correction by class (the paper's data-free form).
    """

    SOURCE: ClassVar[str] = "Guo et al. 2023 (SCALE-UP); the threshold is taken on the clean set (our choice)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"clean share", "logits only"})

    factors: Annotated[tuple[float, ...], Field(strict=False, min_length=1)] = (3.0, 5.0, 7.0, 9.0, 11.0)
    """What values are multiplied by."""

    def fit(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> Score:
        import torch

        def score(pictures: Pictures) -> torch.Tensor:
            scores: list[torch.Tensor] = []
            for done, batch in enumerate(pictures.split(500), 1):
                levels = batch.to(tools.device)
                predicted = tools.outputs(model, levels).logits.argmax(1)
                same = [
                    tools.outputs(model, amplified(levels, factor)).logits.argmax(1) == predicted
                    for factor in self.factors
                ]
                scores.append(torch.stack(same).double().mean(0))
                tools.tick(min(500 * done, len(pictures)), len(pictures))
            return torch.cat(scores)

        return score


def amplified(images: torch.Tensor, factor: float) -> torch.Tensor:
    """uint8 images times `factor`, cut at 255, rounded down."""
    import torch

    return (images.float() * factor).clamp(max=255).to(torch.uint8)
