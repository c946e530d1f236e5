"""Beatrix against its formulas in numpy, one picture, order and pair of channels at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detecting import Items, linear, noise, tools
from torch import nn

from bdray.detectors.beatrix import GramDeviation
from bdray.models.networks.taps import Taps


class Maps(nn.Module):
    """Its last map are the picture's colours, less a grey; its features their means."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.fc = nn.Identity(), nn.Linear(3, 3, bias=False)
        self.fc.weight.data = torch.eye(3)
        self.taps = Taps("fc", {"last": "last"})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.last(images - 0.3).mean((2, 3)))


def gram(image: np.ndarray, order: int) -> np.ndarray:
    channels = image.reshape(3, -1).astype(float) / 255 - 0.3
    values = [(channels[i] ** order * channels[j] ** order).sum() for i in range(3) for j in range(i, 3)]
    return np.array([np.sign(value) * abs(value) ** (1 / order) for value in values])


def test_the_score_is_the_excess_over_the_bounds_of_the_class() -> None:
    clean, orders = Items(noise(40, side=6), torch.arange(40) % 2), (1, 2, 3)
    pictures = noise(12, side=6) // 2
    pictures[:, 1] //= 2
    found = GramDeviation(orders=orders, width=2.0, per_class=15).fit(Maps(), clean, tools(3))(pictures)
    evenly = torch.linspace(0, 39, 15).long().numpy()
    expected = []
    for picture in pictures.numpy():
        label = int((picture / 255).mean((1, 2)).argmax())
        rows = (clean.labels == label).nonzero().flatten().numpy()[:15] if label < 2 else evenly
        total = []
        for order in orders:
            near = np.stack([gram(clean.images[row].numpy(), order) for row in rows])
            middle = np.median(near, 0)
            spread = np.median(np.abs(near - middle), 0)
            own, low, high = gram(picture, order), middle - 2 * spread, middle + 2 * spread
            total.append(
                np.maximum(low - own, 0) / (np.abs(low) + 1e-6) + np.maximum(own - high, 0) / (np.abs(high) + 1e-6)
            )
        expected.append(np.mean(total))
    assert max(expected) > 0.01
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len({int((picture / 255).mean((1, 2)).argmax()) for picture in pictures.numpy()}) == 2


def test_a_network_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match="beatrix needs a feature map"):
        GramDeviation().fit(linear(2, 4), Items(noise(4), torch.zeros(4)), tools(2))


def test_a_class_with_one_clean_picture_has_no_bounds_of_its_own() -> None:
    """Found: they were of no width, so that every other picture lay outside."""
    images, pictures = noise(40, side=6), noise(12, side=6) // 2
    one_each, of_others = torch.arange(40), torch.full((40,), 100)
    scores = [
        GramDeviation(per_class=40).fit(Maps(), Items(images, labels), tools(3)) for labels in (one_each, of_others)
    ]
    assert scores[0](pictures).numpy() == pytest.approx(scores[1](pictures).numpy())
