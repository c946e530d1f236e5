"""The networks of `search_spaces/backdoorbench_networks.yaml`, built without memory beside torchvision's, which
BackdoorBench takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision import models

from bdray.models.networks.taps import head_of, taps_of
from bdray.models.networks.timm_model import begin_timm
from bdray.models.timm_model import TimmModel
from bdray.space import load_space

SPACE = Path(__file__).parents[3] / "search_spaces" / "backdoorbench_networks.yaml"
THEIRS = {
    "vgg19_bn": (models.vgg19_bn, 32, "none"),
    "vit_base_patch16_224.augreg_in1k": (models.vit_b_16, 224, "imagenet"),
    "convnext_tiny.fb_in1k": (models.convnext_tiny, 32, "imagenet"),
    "efficientnet_b3": (models.efficientnet_b3, 32, "none"),
}
"""By timm's name: torchvision's network, the side of its pictures, and from what weights BackdoorBench begins."""


def test_the_space_has_them_at_their_sizes_from_their_weights() -> None:
    conditions = load_space(SPACE).conditions()
    found = {
        condition.model.variant: (condition.data.image_size, condition.model.weights)
        for condition in conditions
        if isinstance(condition.model, TimmModel)
    }
    assert found == {name: (side, weights) for name, (_, side, weights) in THEIRS.items()}
    assert {condition.model.name for condition in conditions} - {f"timm/{name}" for name in THEIRS} == {
        "preact_resnet18"
    }


@pytest.mark.parametrize("name", THEIRS)
def test_each_is_built_and_is_torchvisions(name: str) -> None:
    published, side, _ = THEIRS[name]
    with torch.device("meta"):
        ours, theirs = begin_timm(name, 10, side), published(num_classes=10)
        logits = ours.eval()(torch.empty(2, 3, side, side))
        head = head_of(ours)
    assert logits.shape == (2, 10)
    assert all(parameter.is_meta for parameter in ours.parameters())
    assert isinstance(head, torch.nn.Linear)
    assert sum(each.numel() for each in ours.parameters()) == sum(each.numel() for each in theirs.parameters())
    assert taps_of(ours).points
