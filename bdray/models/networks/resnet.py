"""timm's ResNets, with an optional stem for small images."""

from __future__ import annotations

import timm
from torch import nn

from bdray.models.networks.taps import Taps, attach_taps


def make_resnet(name: str, num_classes: int, *, cifar_stem: bool, zero_init_residual: bool = False) -> nn.Module:
    """timm's `name` (`resnet18`, `resnet50`), freshly initialised.

    Args:
        cifar_stem: 3 x 3 convolution of stride 1 and no pooling, so that a 32 x 32 image reaches the first stage whole.
        zero_init_residual: the last batch norm of every block begins at zero (timm's default), not at one.
    """
    network: nn.Module = timm.create_model(name, num_classes=num_classes, zero_init_last=zero_init_residual)
    if cifar_stem:
        width = len(network.get_parameter("conv1.weight"))
        network.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    attach_taps(network, Taps("fc", {f"stage{i}": f"layer{i}" for i in (1, 2, 3, 4)}, stem="conv1"))
    return network
