"""What every registered trigger must do, and every option of the built-in ones."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch

from bdray.errors import TriggerError
from bdray.triggers import TRIGGERS, Trigger, build_trigger, unchanged

VARIANTS: list[dict[str, Any]] = [
    # What stamps known pictures alone has a test of its own.
    *({"name": name} for name, cls in TRIGGERS if not cls.ONLY_ORIGINALS),
    {"name": "patch", "style": "checkerboard", "size": 4},
    {"name": "patch", "position": "random", "opacity": 0.5},
    {"name": "patch", "position": "center", "color": [255, 0, 127]},
    {"name": "patch", "position": "top_left", "margin": 0},
    {"name": "patch", "style": "label_consistent", "position": "four_corners", "margin": 0},
    {"name": "pixel", "count": 4},
    {"name": "noise_patch", "pattern_seed": 7, "position": "random"},
    {"name": "line", "orientation": "vertical", "thickness": 2},
    {"name": "line", "orientation": "diagonal", "place": 0.25},
    {"name": "watermark", "text": "x", "position": "random"},
    {"name": "watermark", "text": "x", "position": "four_corners"},
    {"name": "blend", "pattern": "rings", "alpha": 0.05},
    {"name": "sinusoid", "delta": 8, "frequency": 3},
    {"name": "warp", "grid_size": 8, "strength": 1},
    {"name": "warp", "covers": "noise"},
    *({"name": "filter", "look": look} for look in ("gotham", "kelvin", "lomo", "nashville", "sepia")),
    {"name": "filter", "strength": 0.5},
    {"name": "image", "size": 32, "margin": 0, "opacity": 0.2},
    {"name": "image", "fit": "stretch", "opacity": 0.2},
    {"name": "bpp", "depth": 5},
    {"name": "bpp", "dithering": True},
    {"name": "frequency", "space": "yuv", "magnitude": 100},
    {"name": "frequency", "block": 8, "coefficients": [[0, 7], [3, 3], [7, 0]]},
    {"name": "additive", "strength": 2.5},
    {"name": "reflection", "kind": "in_focus"},
    {"name": "reflection", "kind": "out_of_focus", "alpha": 0.4},
    {"name": "patch", "style": "label_consistent", "position": "four_corners", "margin": 0, "amplitude": 64},
    {"name": "adaptive_blend", "of": {"name": "sinusoid"}, "pieces": 9, "mask_rate": 0.2},
    {"name": "adaptive_patch", "show": "all"},
    {"name": "adaptive_patch", "parts": [{"name": "patch", "position": "random"}, {"name": "adaptive_blend"}]},
]
SHAPES = [(32, 32), (64, 64), (33, 33), (24, 40), (16, 16)]


@pytest.fixture(params=VARIANTS, ids=lambda content: "-".join(str(value) for value in content.values()))
def trigger(request: pytest.FixtureRequest, sticker: str, perturbation: str) -> Trigger:
    content = dict(request.param)
    if "path" in TRIGGERS.get(content["name"]).model_fields:
        content["path"] = perturbation if content["name"] == "additive" else sticker
    return TRIGGERS.build(content)


def draws(trigger: Trigger) -> bool:
    """Whether something of it is drawn for every image."""
    places = (getattr(member, "position", None) for member in trigger.members)
    return "random" in places or trigger.test_trigger != trigger


def noise(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stamps_every_shape_and_leaves_its_input(trigger: Trigger, shape: tuple[int, int]) -> None:
    images = noise(5, *shape)
    before = images.clone()
    stamped = trigger.stamp(images, generator=torch.Generator().manual_seed(1))
    assert stamped.shape == images.shape
    assert stamped.dtype == torch.uint8
    assert stamped.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)
    assert not unchanged(images, stamped).any()


def test_takes_views_and_expanded_images(trigger: Trigger) -> None:
    images = noise(2)
    views = images.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert torch.equal(trigger.stamp(views), trigger.stamp(images))
    assert trigger.stamp(views).is_contiguous()
    stamped = trigger.stamp(images[:1].expand(3, -1, -1, -1))
    assert not unchanged(images[:1].expand(3, -1, -1, -1), stamped).any()


def test_same_seed_same_output(trigger: Trigger) -> None:
    images = noise(6)
    first, second = (trigger.stamp(images, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(trigger.stamp(images), trigger.stamp(images))


def test_never_touches_the_global_generator(trigger: Trigger) -> None:
    before = torch.random.get_rng_state()
    trigger.stamp(noise(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_stamps_each_image_alike_alone_and_in_a_batch(trigger: Trigger) -> None:
    if draws(trigger):
        pytest.skip("its place, or what of it is shown, is drawn anew for every image")
    images = noise(4)
    alone = torch.cat([trigger.stamp(image.unsqueeze(0)) for image in images])
    assert torch.equal(trigger.stamp(images), alone)


def test_round_trips_through_json_and_pickle(trigger: Trigger) -> None:
    content = json.loads(json.dumps(trigger.model_dump(mode="json")))
    read = TRIGGERS.build(content)
    assert read == trigger
    assert read.identity() == trigger.identity()
    assert pickle.loads(pickle.dumps(trigger)) == trigger
    images = noise(3)
    assert torch.equal(read.stamp(images), trigger.stamp(images))


def test_stamps_no_images_at_all(trigger: Trigger) -> None:
    assert trigger.stamp(noise(0)).shape == (0, 3, 32, 32)


def test_says_where_it_comes_from(trigger: Trigger) -> None:
    assert "arXiv" in trigger.SOURCE or "our choice" in trigger.SOURCE


def test_chunks_do_not_show(trigger: Trigger, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(7)
    whole = trigger.stamp(images)
    if not draws(trigger):
        monkeypatch.setattr("bdray.triggers.base._CHUNK_VALUES", 2 * 3 * 32 * 32)
        assert torch.equal(trigger.stamp(images), whole)


@pytest.mark.parametrize(
    "content",
    [
        {"name": "patch"},
        {"name": "blend", "alpha": 0.0001},
        {"name": "sinusoid", "delta": 0.001},
        {"name": "watermark", "opacity": 0.0001},
        {"name": "filter", "strength": 0.0001},
        {"name": "warp"},
        {"name": "bpp"},
        {"name": "bpp", "dithering": True},
        {"name": "frequency", "magnitude": 0.001},
    ],
    ids=lambda content: "-".join(str(value) for value in content.values()),
)
def test_a_trigger_that_changes_nothing_is_an_error(content: dict[str, Any]) -> None:
    white = torch.full((3, 3, 32, 32), 255, dtype=torch.uint8)
    with pytest.raises(TriggerError, match=f"'{content['name']}' changes no pixel of any of the 3 images"):
        TRIGGERS.build(content).stamp(white)


def test_one_unchanged_image_is_counted_not_refused() -> None:
    images = noise(3)
    images[1] = 255
    assert unchanged(images, build_trigger("patch").stamp(images)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (torch.zeros(2, 3, 32, 32), "uint8 images, got float32"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "N x 3 x H x W, got 2 x 1 x 32 x 32"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "N x 3 x H x W, got 3 x 32 x 32"),
    ],
)
def test_refuses_other_images(images: torch.Tensor, problem: str) -> None:
    with pytest.raises(TriggerError, match=problem):
        build_trigger("patch").stamp(images)
