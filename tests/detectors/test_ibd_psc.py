"""IBD-PSC on a network whose every step is known, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detecting import Items, noise, tools
from torch import nn

from bdray.detectors.ibd_psc import ParameterScaledConsistency
from bdray.models.networks.taps import Taps


class Chain(nn.Module):
    """Three normalisations one after the other, then the mean of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.BatchNorm2d(3) for _ in range(3))
        self.fc = nn.Linear(3, 3, bias=False)
        self.fc.weight.data = 4 * torch.eye(3)
        for index, norm in enumerate((self.first, self.second, self.third)):
            norm.weight.data = torch.tensor([1.0, 0.9, 1.1])
            norm.bias.data = torch.tensor([0.1, -0.2, 0.05]) * (index + 1)
        self.taps = Taps("fc", {})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.third(self.second(self.first(images))).mean((2, 3)))


def by_hand(images: np.ndarray, count: int, factor: float) -> np.ndarray:
    """Probabilities where the last `count` normalisations are raised."""
    values = images.astype(float) / 255
    for index in range(3):
        raised = factor if index >= 3 - count else 1.0
        scale, shift = raised * np.array([1.0, 0.9, 1.1]), raised * np.array([0.1, -0.2, 0.05]) * (index + 1)
        values = values / np.sqrt(1 + 1e-5) * scale[None, :, None, None] + shift[None, :, None, None]
    odds = np.exp(4 * values.mean((2, 3)))
    return odds / odds.sum(1, keepdims=True)


@pytest.mark.parametrize(("share", "counts"), [(-1.0, [1, 2]), (1.1, [3, 3])])
def test_the_score_is_the_mean_probability_of_the_copies(share: float, counts: list[int]) -> None:
    """The least number of normalisations is 1 where any error is enough, and all where none is."""
    clean, model = noise(30), Chain().eval()
    said = by_hand(clean.numpy(), 0, 1.5).argmax(1)
    labels = torch.from_numpy((said + 1) % 3 if share < 0 else by_hand(clean.numpy(), 1, 1.5).argmax(1))
    if share > 0:
        labels = torch.from_numpy(said)
    detector = ParameterScaledConsistency(copies=2, wrong=0.0 if share < 0 else 0.99)
    found = detector.fit(model, Items(clean, labels), tools(3))(clean)
    every = [by_hand(clean.numpy(), count, 1.5)[np.arange(30), said] for count in counts]
    assert found.numpy() == pytest.approx(np.mean(every, 0), rel=1e-5)
    assert len({round(value, 6) for value in found.tolist()}) > 5


def test_the_threshold_is_the_paper_s() -> None:
    assert ParameterScaledConsistency().threshold(torch.rand(10)) == 0.9


def test_a_network_without_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="ibd_psc needs batch normalisation"):
        ParameterScaledConsistency().fit(nn.Flatten(), Items(noise(4), torch.zeros(4)), tools(2))
