"""Triggers that show more of themselves at test time than in any training image."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from bdray.errors import BdrayError
from bdray.triggers import TRIGGERS, Trigger, build_trigger
from bdray.triggers.blend import Blend


def noise(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def stamped(trigger: Trigger, images: torch.Tensor) -> torch.Tensor:
    return trigger.stamp(images, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("side", "pieces", "mask_rate", "shown"), [(32, 16, 0.5, 8), (32, 4, 0.25, 3), (33, 9, 0.5, 5)]
)
def test_every_image_shows_its_own_whole_pieces(side: int, pieces: int, mask_rate: float, shown: int) -> None:
    """Piece by piece: either all of Chen's equation, or the image as it was. Half of nine are four, rounded."""
    images = noise(40, side, side)
    trigger = build_trigger("adaptive_blend", pieces=pieces, mask_rate=mask_rate)
    found, a_row = stamped(trigger, images).numpy(), round(pieces**0.5)
    picture = Blend().picture(side, side).numpy().astype(np.float64)
    exact = 0.15 * picture + 0.85 * images.numpy().astype(np.float64)
    edges = [-(-number * side // a_row) for number in range(a_row + 1)]
    patterns = set()
    for number, image in enumerate(found):
        whole = []
        for row, column in product(range(a_row), repeat=2):
            here = (slice(None), slice(edges[row], edges[row + 1]), slice(edges[column], edges[column + 1]))
            whole.append(np.abs(image[here] - exact[number][here]).max() <= 0.5 + 1e-4)
            assert whole[-1] or np.array_equal(image[here], images[number].numpy()[here])
        assert sum(whole) == shown
        patterns.add(tuple(whole))
    assert len(patterns) > 1


def test_a_test_image_shows_all_pieces() -> None:
    trigger = build_trigger("adaptive_blend", of={"name": "sinusoid"})
    assert trigger.test_trigger == build_trigger("sinusoid")
    assert trigger.members == (build_trigger("sinusoid"),)


def test_every_training_image_shows_one_patch_and_every_test_image_all() -> None:
    parts: list[dict[str, Any]] = [{"name": "patch"}, {"name": "noise_patch", "size": 5, "position": "top_left"}]
    trigger, images = build_trigger("adaptive_patch", parts=parts), noise(40)
    each = [build_trigger(**part).stamp(images) for part in parts]
    found = stamped(trigger, images)
    shows = [[torch.equal(image, part[number]) for part in each] for number, image in enumerate(found)]
    assert all(sum(one) == 1 for one in shows)
    assert all(map(any, zip(*shows, strict=True)))
    both = build_trigger(**parts[1]).stamp(each[0])
    assert torch.equal(trigger.test_trigger.stamp(images), both)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"name": "adaptive_blend", "pieces": 15}, "pieces: must be a square number"),
        ({"name": "adaptive_blend", "mask_rate": 0.01}, "mask_rate: 0.01 of 16 pieces comes to 0"),
        ({"name": "adaptive_blend", "of": {"name": "blend", "alhpa": 1}}, r"of.alhpa: .* did you mean 'alpha'"),
        ({"name": "adaptive_patch", "parts": "patch"}, "parts: must be a list of triggers, got 'patch'"),
        ({"name": "adaptive_patch", "parts": [{"name": "patch"}]}, "at least 2"),
        ({"name": "adaptive_patch", "parts": [{"name": "patch"}, {"name": "pach"}]}, r"parts.1.name: .*'patch'"),
        ({"name": "adaptive_patch", "parts": [{"name": "patch"}, 3]}, r"parts.1: must be a mapping, got 3"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_at_its_place(content: dict[str, Any], problem: str) -> None:
    with pytest.raises(BdrayError, match=problem):
        build_trigger(**content)


def test_a_label_names_its_parts_as_they_name_themselves() -> None:
    """Found in a table: `parts=(Patch(position='bottom_right', margin=1, ...`."""
    parts = [{"name": "patch", "style": "checkerboard"}, {"name": "noise_patch", "size": 5}]
    said = TRIGGERS.label({"name": "adaptive_patch", "parts": parts, "show": "all"})
    assert said == "adaptive_patch parts=[patch style=checkerboard, noise_patch size=5] show=all"
    assert TRIGGERS.label({"name": "sinusoid", "delta": 40}) == "sinusoid delta=0.1569"
