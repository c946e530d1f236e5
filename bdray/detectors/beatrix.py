"""Beatrix: a triggered picture's activations go together in another way than those of its class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, InputDetector
from bdray.detectors.tools import DetectorTools, Labelled, Pictures
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.detectors.base import Score

BATCH = 50
"""Pictures at once: a Gram matrix of each takes channels x channels numbers."""


@DETECTORS.register("beatrix")
class GramDeviation(InputDetector):
    """How far the Gram matrices of a picture's last feature map lie outside those of clean pictures that have its
    prediction for a label.

    The Gram matrix of order p is (F^p F^pT)^(1/p) for the map F as channels by positions, elementwise powers; of it the
    values on and above the diagonal. Beyond `width` median absolute deviations from the median of the class, the excess
    counts in parts of that bound; the score is the mean over values and orders (the paper's equations 4 to 7). A
    picture of a class with fewer than two clean pictures is compared with those of all classes. The threshold is taken
    on the pictures that bounds come from: with few of a class, more than `false_positives` of new ones lie above it.
    """

    SOURCE: ClassVar[str] = (
        "Ma, Wang, Sun, Xu, Wang, Li & Xue 2023 (Beatrix, arXiv 2209.11715); of its two parts the first"
    )
    SEES: ClassVar[frozenset[Sight]] = frozenset({"clean share", "labels", "weights"})

    orders: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Orders of Gram matrices."""
    per_class: int = Field(default=30, ge=1)
    """Clean pictures of each class that bounds are taken from, at most."""
    width: float = Field(default=10.0, gt=0.0)
    """Median absolute deviations on either side of the median."""
    false_positives: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Part of the clean set that its own threshold may flag."""

    def fit(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> Score:
        import torch

        maps = torch.cat([maps for maps, _ in _maps(model, clean.images, tools)])
        members = {int(label): (clean.labels == label).nonzero().flatten() for label in clean.labels.unique()}
        # The deviation of a single one is 0, and every other picture would lie outside.
        several = {label: rows[: self.per_class] for label, rows in members.items() if len(rows) > 1}
        bounds = {label: self.bounds(self.grams(maps[rows])) for label, rows in several.items()}
        evenly = torch.linspace(0, len(maps) - 1, min(self.per_class, len(maps))).long()
        of_any = self.bounds(self.grams(maps[evenly]))

        def score(pictures: Pictures) -> torch.Tensor:
            scores: list[torch.Tensor] = []
            for maps, predicted in _maps(model, pictures, tools):
                for gram, label in zip(self.grams(maps), predicted.tolist(), strict=True):
                    scores.append(excess(gram, *bounds.get(label, of_any)))
                tools.tick(len(scores), len(pictures))
            return torch.stack(scores)

        return score

    def grams(self, maps: torch.Tensor) -> torch.Tensor:
        """float64, `N x orders x C (C + 1) / 2`. `maps`: float, `N x C x positions`."""
        import torch

        maps = maps.double()
        rows, columns = torch.triu_indices(maps.shape[1], maps.shape[1])
        made = []
        for order in self.orders:
            powers = maps**order
            products = (powers @ powers.transpose(1, 2))[:, rows, columns]
            made.append(products.sign() * products.abs() ** (1 / order))
        return torch.stack(made, 1)

    def bounds(self, grams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower and upper: float64, `orders x values`."""
        middle = grams.quantile(0.5, 0)
        spread = (grams - middle).abs().quantile(0.5, 0)
        return middle - self.width * spread, middle + self.width * spread


def excess(gram: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """The mean of what lies outside, in parts of the bound that it passes: float64, a scalar. All `orders x values`."""
    below = (lower - gram).clamp(min=0) / (lower.abs() + 1e-6)
    above = (gram - upper).clamp(min=0) / (upper.abs() + 1e-6)
    return (below + above).mean()


def _maps(model: nn.Module, pictures: Pictures, tools: DetectorTools) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The last map of each picture (float32, `n x C x positions`) and what it is taken for (int64, `n`), on the host, a
    batch at a time.

    Raises:
        ValueError: the network has no such map.
    """
    import torch

    from bdray.models.networks.taps import Taps, forward_outputs

    taps: Taps = model.taps  # type: ignore[assignment]
    if not taps.points:
        raise ValueError("beatrix needs a feature map: the network names none")
    last = list(taps.points)[-1]
    for batch in pictures.split(BATCH):
        with torch.no_grad(), tools.autocast():
            seen = forward_outputs(model, tools.normalize(batch.to(tools.device).float().div_(255)), capture=(last,))
        maps = seen.hidden[last].float().cpu()
        if maps.ndim not in (3, 4):
            raise ValueError(f"beatrix needs a feature map: '{last}' gives {tuple(maps.shape[1:])}")
        # A transformer's: positions by channels.
        yield maps.flatten(2) if maps.ndim == 4 else maps.transpose(1, 2), seen.logits.argmax(1).cpu()
