"""A trigger off its place and a part of it, built again by hand, image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bdray.triggers.base import build_trigger
from bdray.triggers.variations import vary


def images(count: int = 5, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 200, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def varied(variation: Any, clean: torch.Tensor, name: str, **options: Any) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(0)
    return vary(variation, build_trigger(name, **options), clean, generator=generator)


@pytest.mark.parametrize(
    ("position", "corner"),
    [("bottom_right", (16, 16)), ("top_left", (21, 21)), ("bottom_left", (16, 21)), ("center", (2, 2))],
)
def test_a_patch_off_its_place_is_whole_and_the_rest_is_as_it_was(position: str, corner: tuple[int, int]) -> None:
    clean = images()
    expected = clean.clone()
    top, left = corner
    expected[:, :, top : top + 3, left : left + 3] = 255
    found = varied("off_position", clean, "patch", position=position, style="solid")
    assert found is not None
    assert torch.equal(found, expected)


def test_the_half_of_a_patch() -> None:
    clean = images()
    expected = clean.clone()
    expected[:, :, 28:31, 28:30] = 255
    found = varied("part", clean, "patch", style="solid")
    assert found is not None
    assert torch.equal(found, expected)


def test_the_upper_half_of_what_is_higher_than_wide() -> None:
    clean = images()
    whole = build_trigger("line", orientation="vertical").stamp(clean)
    changed = np.argwhere((whole != clean).any(dim=1).any(dim=0).numpy())
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    expected = clean.clone()
    half = top + (bottom - top + 2) // 2
    expected[:, :, top:half, left : right + 1] = whole[:, :, top:half, left : right + 1]
    found = varied("part", clean, "line", orientation="vertical")
    assert found is not None
    assert torch.equal(found, expected)


def test_a_part_follows_what_changed_in_each_image() -> None:
    clean = images()
    clean[1, :, 28:31, 28] = 255  # white there already: the box of this image is narrower
    found = varied("part", clean, "patch", style="solid")
    assert found is not None
    assert [int((row != other).any(dim=0).sum()) for row, other in zip(found, clean, strict=True)] == [6, 4, 6, 6, 6]
    assert (found[1, :, 28:30, 29:31] == 255).all(), "higher than wide"


@pytest.mark.parametrize("side", [16, 32, 33])
@pytest.mark.parametrize("name", ["blend", "sinusoid", "noise_patch", "watermark", "warp"])
def test_both_are_other_pictures_than_the_trigger(name: str, side: int) -> None:
    clean = images(side=side)
    whole = build_trigger(name).stamp(clean, generator=torch.Generator().manual_seed(0))
    for variation in ("off_position", "part"):
        found = varied(variation, clean, name)
        assert found is not None
        assert found.shape == clean.shape
        assert not torch.equal(found, whole)
        assert not torch.equal(found, clean)


@pytest.mark.parametrize(
    ("variation", "name", "options"),
    [("off_position", "filter", {}), ("part", "pixel", {}), ("off_position", "patch", {"position": "random"})],
)
def test_what_is_no_other_picture_is_none(variation: str, name: str, options: dict[str, Any]) -> None:
    assert varied(variation, images(), name, **options) is None


def test_images_are_left_as_they_were() -> None:
    clean = images()
    before = clean.clone()
    for variation in ("whole", "off_position", "part"):
        varied(variation, clean, "patch")
    assert torch.equal(clean, before)
