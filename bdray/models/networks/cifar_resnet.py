"""The ResNet for 32 x 32 images of He et al. 2016, section 4.2."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import pad, relu_

from bdray.models.networks.taps import Taps

WIDTHS = (16, 32, 64)


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class _SubsampleAndPad(nn.Module):
    """The paper's option A: every `stride`-th pixel, and zeros for the channels that are new."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        before = self.new_channels // 2
        kept = images[:, :, :: self.stride, :: self.stride]
        return pad(kept, (0, 0, 0, 0, before, self.new_channels - before))


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs and projection:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        elif inputs != outputs:
            self.downsample = _SubsampleAndPad(outputs - inputs, stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = relu_(self.bn1(self.conv1(images)))
        return relu_(self.bn2(self.conv2(hidden)) + self.downsample(images))


class CifarResNet(nn.Module):
    """ResNet of depth `6n + 2`, named as torchvision names its ResNets.

    Args:
        blocks: `n`, blocks a stage.
        num_classes: outputs of the head.
        projection: 1 x 1 convolutions as shortcuts where the width changes (option B), not option A.
    """

    def __init__(self, blocks: int, num_classes: int, *, projection: bool = False) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        inputs = (WIDTHS[0], *WIDTHS)
        stages = [
            nn.Sequential(
                _BasicBlock(inputs[i], width, 1 if i == 0 else 2, projection),
                *(_BasicBlock(width, width, 1, projection) for _ in range(blocks - 1)),
            )
            for i, width in enumerate(WIDTHS)
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        self.taps = Taps("fc", {f"stage{i}": f"layer{i}" for i in (1, 2, 3)}, stem="conv1")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, `N x K`, of normalised images, `N x 3 x S x S`."""
        hidden = relu_(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: torch.Tensor = self.fc(hidden.mean(dim=(2, 3)))
        return logits
