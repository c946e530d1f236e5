"""timm's pre-activation ResNet, with a linear head and an optional stem for small images."""

from __future__ import annotations

from collections import OrderedDict

import timm
from timm.layers import ClassifierHead
from torch import nn

from bdray.models.networks.taps import Taps, attach_taps


def make_preact_resnet18(num_classes: int, *, cifar_stem: bool, final_norm: bool, he_init: bool) -> nn.Module:
    """timm's `resnetv2_18`, freshly initialised.

    Args:
        cifar_stem: 3 x 3 convolution of stride 1 and no pooling, so that a 32 x 32 image reaches the first stage whole.
        final_norm: batch norm and ReLU after the last block.
        he_init: convolutions begin normal over fan_out; else as PyTorch makes them, uniform over fan_in.
    """
    network: nn.Module = timm.create_model("resnetv2_18", num_classes=num_classes)
    if cifar_stem:
        network.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 64, 3, padding=1, bias=False)))
    if not final_norm:
        network.norm = nn.Identity()
    # timm's own head is a 1 x 1 convolution; what taps a head, or cuts its columns, wants a matrix.
    network.head = ClassifierHead(512, num_classes, pool_type="avg")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            if he_init:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                module.reset_parameters()
    attach_taps(network, Taps("head.fc", {f"stage{i + 1}": f"stages.{i}" for i in range(4)}, stem="stem.conv"))
    return network
