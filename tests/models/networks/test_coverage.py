"""Networks that do not see a whole image are refused, and no others."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import nn

from bdray.errors import ComponentError
from bdray.models import ARCHITECTURES, Architecture, build_model
from bdray.models.networks.coverage import measured_on, pixels_seen
from bdray.models.networks.taps import Taps, attach_taps
from bdray.models.timm_model import TimmModel


@pytest.mark.parametrize(
    ("name", "size", "rows", "working"),
    [
        ("eva02_tiny_patch14_224", 32, 28, "28 and 42"),
        ("vit_small_patch14_dinov2", 32, 28, "28 and 42"),
        ("vit_tiny_patch16_224", 28, 16, "16 and 32"),
        ("vit_tiny_patch16_224", 40, 32, "32 and 48"),
        ("beit_base_patch16_224", 40, 32, "32 and 48"),
        ("cait_xxs24_224", 40, 32, "32 and 48"),
    ],
)
def test_a_transformer_that_leaves_out_pixels_is_refused_with_sizes_that_work(
    name: str, size: int, rows: int, working: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without making all its layers once: a large one took a minute and a half."""
    monkeypatch.setattr(TimmModel, "make", lambda *_: pytest.fail("the whole network is made"))
    with pytest.raises(ComponentError) as caught:
        build_model(f"timm/{name}", 10, size)
    part = f"({rows} of {size} rows, {rows} of {size} columns)"
    assert f"sees {rows**2} of the {size**2} pixels of an image {part}" in caught.value.problem
    assert caught.value.problem.endswith(f"the nearest image_size that it sees whole: {working}")


@pytest.mark.parametrize(
    ("name", "size", "rows"),
    [
        ("vit_tiny_patch16_224", 32, 32),
        ("vit_tiny_patch16_224", 40, 32),
        # Its shallow form has no blocks and sees 34 rows.
        ("visformer_tiny", 40, 40),
        ("test_vit_relpos", 160, 160),
        # It has no shallow form.
        ("pit_ti_224", 41, 40),
    ],
)
def test_a_shallow_network_decides_as_the_whole_one(name: str, size: int, rows: int) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this version of timm has no {name}")
    architecture = ARCHITECTURES.build(f"timm/{name}")
    seen = pixels_seen(architecture, size)
    assert torch.equal(seen, measured_on(architecture, architecture.make(2, size), size))
    assert seen.any(0).sum() == rows


ONE_DRAW_MAY_MISS = ["resnet8", "resnet20", "resnet18", "preact_resnet18", "nasnet_mobile"]
AT_SIZES: list[tuple[dict[str, Any], int]] = [
    *(({"name": name}, 32) for name in ONE_DRAW_MAY_MISS),
    *(({"name": name, "stem": "cifar"}, 8) for name in ONE_DRAW_MAY_MISS),
    # Subsampling shortcuts whose blocks begin at zero carry a few pixels only.
    ({"name": "resnet18", "stem": "standard", "zero_init_residual": True}, 96),
    ({"name": "timm/test_resnet"}, 64),
    *(({"name": f"timm/test_{name}"}, 32) for name in ("vit", "convnext", "efficientnet", "mambaout", "byobnet")),
    # Convolutions that begin as the identity look at no neighbour yet.
    *(({"name": "airbench", "padded": padded}, 32) for padded in (True, False)),
    # Gains of its blocks begin at zero.
    ({"name": "timm/test_nfnet"}, 32),
]


@pytest.mark.parametrize(("options", "size"), AT_SIZES)
def test_a_network_that_sees_all_is_taken(options: dict[str, Any], size: int) -> None:
    assert pixels_seen(ARCHITECTURES.build(options), size).all()


def test_a_stride_that_leaves_out_one_row_and_column_is_no_reason_to_refuse() -> None:
    """NASNet's first convolution as published, at its usual sizes 224 and 331: only the odd one is covered."""
    architecture = ARCHITECTURES.build({"name": "nasnet_mobile", "stem": "standard"})
    seen = pixels_seen(architecture, 34)
    assert seen[:33, :33].all()
    assert not seen[33].any()
    assert not seen[:, 33].any()
    assert architecture.build(5, 34) is not None
    assert pixels_seen(architecture, 35).all()


class Blind(Architecture):
    """Sees every second pixel, or none; its head begins at zero."""

    SOURCE: ClassVar[str] = "test"
    stride: int = 2

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        network = nn.Sequential(
            nn.Conv2d(3, 4, 1, stride=self.stride or 1, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            head := nn.Linear(4, num_classes),
        )
        if not self.stride:
            network.insert(0, Constant())
        nn.init.zeros_(head.weight)
        attach_taps(network, Taps(str(len(network) - 1), {}))
        return network


class Constant(nn.Module):
    """Zero, whatever it sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(images)


@pytest.mark.parametrize(("stride", "seen"), [(1, 64), (2, 16), (0, 0)])
def test_any_network_is_looked_at(stride: int, seen: int) -> None:
    ARCHITECTURES.register("blind")(Blind)
    architecture = ARCHITECTURES.build({"name": "blind", "stride": stride})
    assert int(pixels_seen(architecture, 8).sum()) == seen
    if stride == 1:
        assert architecture.build(3, 8) is not None
    else:
        with pytest.raises(ComponentError, match=f"blind sees {seen} of the 64 pixels"):
            architecture.build(3, 8)


@pytest.mark.parametrize(
    ("name", "size", "problem"),
    [("timm/test_vit", 40, "40"), ("timm/maxvit_pico_rw_256", 28, "modulo by zero|division")],
)
def test_whatever_a_network_raises_on_its_size_is_said_in_a_sentence(name: str, size: int, problem: str) -> None:
    with pytest.raises(ComponentError, match=f"{name} cannot .* {size} pixels: .*({problem})"):
        build_model(name, 10, size)


def test_looking_leaves_the_generator_and_the_first_weights_as_they_were() -> None:
    architecture = ARCHITECTURES.build("resnet8")
    weights = []
    for _ in range(2):
        pixels_seen.cache_clear()
        torch.manual_seed(3)
        weights.append(architecture.build(4, 16).state_dict())
    torch.manual_seed(3)
    weights.append(architecture.make(4, 16).state_dict())
    assert all(torch.equal(first, again) for name, first in weights[0].items() for again in [w[name] for w in weights])
    assert pixels_seen.cache_info().misses == 1
