"""TeCo: corruptions change the prediction for a triggered picture at very different strengths."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar

from bdray.detectors.base import DETECTORS, InputDetector
from bdray.detectors.tools import DetectorTools, Labelled, Pictures
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.detectors.base import Score

    Corruption = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]


@DETECTORS.register("teco")
class CorruptionConsistency(InputDetector):
    """The standard deviation, over kinds of corruption, of the least of five strengths at which the prediction for a
    picture changes (6 where none changes it).

    Of the paper's fifteen kinds the six that need no library of their own, at its strengths (Hendrycks & Dietterich
    2019): Gaussian, shot and impulse noise, brightness, contrast, JPEG; and Gaussian blur for the paper's blurs, of 1
    to 6 pixels in pictures of 112, and in others in proportion (our choice).
    """

    SOURCE: ClassVar[str] = "Liu et al. 2023 (TeCo, arXiv 2303.18191); seven kinds of corruption are our choice"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"clean share", "logits only"})

    def fit(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> Score:
        import torch

        def score(pictures: Pictures) -> torch.Tensor:
            scores: list[torch.Tensor] = []
            for batch in pictures.split(500):
                levels = batch.cpu()
                predicted = tools.outputs(model, levels).logits.argmax(1)
                first = [self._first_change(model, levels, predicted, kind, tools) for kind in CORRUPTIONS]
                scores.append(torch.stack(first).double().std(0, correction=0))
                tools.tick(sum(map(len, scores)), len(pictures))
            return torch.cat(scores)

        return score

    def _first_change(
        self, model: nn.Module, images: torch.Tensor, predicted: torch.Tensor, kind: str, tools: DetectorTools
    ) -> torch.Tensor:
        """The least strength that changes the prediction, from 1, or one more than there are: int64, `N`."""
        import torch

        corrupt, strengths = CORRUPTIONS[kind]
        first = torch.full((len(images),), len(strengths) + 1)
        for at, strength in reversed(list(enumerate(strengths, 1))):
            corrupted = to_levels(corrupt(images.float() / 255, strength, tools.generator))
            changed = tools.outputs(model, corrupted).logits.argmax(1) != predicted
            first = torch.where(changed, at, first)
        return first


def to_levels(images: torch.Tensor) -> torch.Tensor:
    """Values cut to [0, 1], as uint8 (rounded down, as the paper's library does)."""
    import torch

    return (images.clamp(0, 1) * 255).to(torch.uint8)


def gaussian_noise(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Adds noise of a standard deviation."""
    import torch

    return images + strength * torch.randn(images.shape, generator=generator)


def shot_noise(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Counts photons; a white pixel has `strength` of them on average."""
    import torch

    return torch.poisson(images * strength, generator=generator) / strength


def impulse_noise(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Makes a part of all values black or white."""
    import torch

    drawn = torch.rand((2, *images.shape), generator=generator)
    return torch.where(drawn[0] < strength, (drawn[1] < 0.5).float(), images)


def gaussian_blur(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Blurs by a standard deviation, in pixels of a picture of 112."""
    from torchvision.transforms.functional import gaussian_blur as blur

    sigma = strength * images.shape[-1] / 112
    blurred: torch.Tensor = blur(images, 2 * max(1, round(3 * sigma)) + 1, sigma)
    return blurred


def brightness(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Raises the largest of a pixel's three values, the others in proportion."""
    import torch

    largest = images.amax(1, keepdim=True)
    raised = (largest + strength).clamp(max=1)
    return torch.where(largest > 0, images * raised / largest.clamp(min=1e-6), raised)


def contrast(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Draws values towards the mean of their channel."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + strength * (images - mean)


def jpeg(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Compresses at a quality."""
    import numpy as np
    import torch
    from PIL import Image

    read = []
    for image in to_levels(images).permute(0, 2, 3, 1).numpy():
        file = BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(strength))
        read.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(read).permute(0, 3, 1, 2).float() / 255


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": (gaussian_blur, (1, 2, 3, 4, 6)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": (jpeg, (25, 18, 15, 10, 7)),
}
"""Kinds of corruption, each with its strengths from weak to strong."""
