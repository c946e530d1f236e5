"""Pictures, a network whose features are pixels, and what a detector computes with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bdray.detectors.tools import DetectorTools
from bdray.models.networks.taps import Taps

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Items:
    images: torch.Tensor
    labels: torch.Tensor


class Pixels(nn.Module):
    """A network whose features are the first pixels, and whose head is linear."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.fc = nn.Linear(weight.shape[1], weight.shape[0])
        self.fc.weight.data, self.fc.bias.data = weight, torch.zeros(len(weight))
        self.taps = Taps("fc", {})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(images.flatten(1)[:, : self.fc.in_features])
        return logits


def tools(classes: int) -> DetectorTools:
    return DetectorTools(torch.Generator().manual_seed(3), classes, CPU, normalize=lambda images: images)


def noise(count: int, side: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def linear(classes: int, features: int) -> Pixels:
    return Pixels(torch.randn(classes, features, generator=torch.Generator().manual_seed(5)))
