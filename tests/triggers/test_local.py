"""Triggers with a place: patch, pixel, noise patch, line, watermark, image. What they change, pixel by pixel."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bdray.errors import ComponentError, TriggerError
from bdray.triggers import TRIGGERS, build_trigger


def grey(count: int = 1, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.full((count, 3, height, width), 100, dtype=torch.uint8)


def changed(name: str, height: int = 32, width: int = 32, **options: Any) -> np.ndarray:
    """Which pixels of a grey image the trigger changes, bool `height x width`."""
    stamped = build_trigger(name, **options).stamp(grey(1, height, width))
    return (stamped[0] != 100).any(dim=0).numpy()


@pytest.mark.parametrize(
    ("position", "rows", "columns"),
    [
        ("bottom_right", slice(28, 31), slice(28, 31)),
        ("bottom_left", slice(28, 31), slice(1, 4)),
        ("top_right", slice(1, 4), slice(28, 31)),
        ("top_left", slice(1, 4), slice(1, 4)),
        ("center", slice(14, 17), slice(14, 17)),
    ],
)
def test_patch_lies_one_pixel_off_its_corner(position: str, rows: slice, columns: slice) -> None:
    expected = grey()[0].numpy()
    expected[:, rows, columns] = 255
    np.testing.assert_array_equal(build_trigger("patch", position=position).stamp(grey())[0], expected)


@pytest.mark.parametrize(
    ("height", "width", "side", "margin"),
    [(64, 64, 6, 2), (128, 128, 12, 4), (33, 33, 3, 1), (48, 96, 4, 2), (16, 16, 2, 1), (8, 8, 1, 1)],
)
def test_sizes_scale_with_the_shorter_side(height: int, width: int, side: int, margin: int) -> None:
    expected = np.zeros((height, width), dtype=bool)
    expected[height - margin - side : height - margin, width - margin - side : width - margin] = True
    if (height, width) == (16, 16):
        margin = 1  # round(0.5) is 0, but what is not 0 stays at least 1
    np.testing.assert_array_equal(changed("patch", height, width), expected)


def test_checkerboard_alternates_colour_and_complement() -> None:
    stamped = build_trigger("patch", style="checkerboard", size=4, margin=0, color=(255, 10, 0)).stamp(grey())
    for row in range(4):
        for column in range(4):
            expected = [255, 10, 0] if (row + column) % 2 == 0 else [0, 245, 255]
            assert stamped[0, :, 28 + row, 28 + column].tolist() == expected


def test_checkerboard_cells_scale_whole() -> None:
    small = build_trigger("patch", style="checkerboard", margin=0).stamp(grey())[0, 0, -3:, -3:]
    large = build_trigger("patch", style="checkerboard", margin=0).stamp(grey(1, 64, 64))[0, 0, -6:, -6:]
    assert torch.equal(large, small.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_opacity_mixes() -> None:
    stamped = build_trigger("patch", opacity=0.3, color=(200, 0, 100)).stamp(grey())
    assert stamped[0, :, 29, 29].tolist() == [130, 70, 100]


def test_random_places_differ_between_images_and_stay_inside_the_margin() -> None:
    trigger = build_trigger("patch", position="random", margin=2)
    stamped = trigger.stamp(grey(4000), generator=torch.Generator().manual_seed(0))
    mask = (stamped != 100).any(dim=1)
    assert (mask.sum(dim=(1, 2)) == 9).all()
    tops, lefts = mask.any(dim=2).int().argmax(dim=1), mask.any(dim=1).int().argmax(dim=1)
    for corner in (tops, lefts):
        # 26 places of equal chance, 2..27: each is met about 154 times.
        counts = torch.bincount(corner, minlength=32)
        assert set(counts.nonzero().flatten().tolist()) == set(range(2, 28))
        assert int(counts.max()) < 220
    assert abs(float(np.corrcoef(tops, lefts)[0, 1])) < 0.06
    other = trigger.stamp(grey(4000), generator=torch.Generator().manual_seed(1))
    assert not torch.equal(stamped, other)


@pytest.mark.parametrize(("name", "options"), [("patch", {"size": 32}), ("patch", {"size": 40, "margin": 0})])
def test_what_does_not_fit_is_an_error(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(TriggerError, match="does not fit into an image of 32 x 32"):
        build_trigger(name, **options).stamp(grey())


@pytest.mark.parametrize("name", ["patch", "noise_patch"])
@pytest.mark.parametrize(("position", "largest"), [("center", 32), ("bottom_right", 31), ("random", 30)])
def test_what_does_not_fit_is_known_before_anything_is_stamped(name: str, position: str, largest: int) -> None:
    for size in (largest, largest + 1):
        trigger, said = build_trigger(name, size=size, position=position), "does not fit into an image of 32 x 32"
        with nullcontext() if size == largest else pytest.raises(ComponentError, match=said):
            trigger.check(32)
        with nullcontext() if size == largest else pytest.raises(TriggerError, match=said):
            trigger.stamp(grey())


@pytest.mark.parametrize(("size", "image_size"), [(2, 32), (3, 16), (1, 64)])
def test_a_pattern_that_its_square_cannot_hold_is_refused(size: int, image_size: int) -> None:
    """Of 2 x 2 pixels three were black, and a single pixel was black, too."""
    with pytest.raises(ComponentError, match=r"size: a square of . pixels? in images .* no room for .* 3 x 3 cells"):
        build_trigger("patch", style="label_consistent", size=size).check(image_size)
    build_trigger("patch", style="checkerboard", size=size).check(image_size)


@pytest.mark.parametrize(
    ("name", "options", "largest"),
    [
        ("pixel", {}, 31),
        ("pixel", {"count": 4}, 29),
        ("pixel", {"position": "random"}, 15),
        ("watermark", {"position": "bottom_right"}, 5),
        ("image", {"path": "search_spaces/sticker.png"}, 24),
    ],
)
def test_nor_does_what_has_too_wide_a_margin(name: str, options: dict[str, Any], largest: int) -> None:
    """Found: of these three it was known in the first trial only."""
    for margin in (largest, largest + 1):
        trigger = build_trigger(name, margin=margin, **options)
        with nullcontext() if margin == largest else pytest.raises(ComponentError, match="does not fit"):
            trigger.check(32)
        with nullcontext() if margin == largest else pytest.raises(TriggerError, match="does not fit"):
            trigger.stamp(grey())


def test_pixels_are_those_of_badnets() -> None:
    assert np.argwhere(changed("pixel")).tolist() == [[30, 30]]
    assert np.argwhere(changed("pixel", count=4)).tolist() == [[28, 30], [29, 29], [30, 28], [30, 30]]
    assert changed("pixel", 64, 64)[60:62, 60:62].all()
    assert changed("pixel", 64, 64).sum() == 4


def test_noise_patch_is_one_texture_for_all_images() -> None:
    first, second = build_trigger("noise_patch", size=5).stamp(torch.stack([grey()[0], grey()[0] * 2]))
    assert torch.equal(first[:, 26:31, 26:31], second[:, 26:31, 26:31])
    assert len(first[:, 26:31, 26:31].unique()) > 40
    other = build_trigger("noise_patch", size=5, pattern_seed=1).stamp(grey())[0]
    assert not torch.equal(first, other)


def test_lines() -> None:
    horizontal, vertical = np.zeros((32, 32), dtype=bool), np.zeros((32, 32), dtype=bool)
    horizontal[0] = True
    vertical[:, 30:] = True
    np.testing.assert_array_equal(changed("line", place=0.0), horizontal)
    np.testing.assert_array_equal(changed("line", orientation="vertical", place=1.0, thickness=2), vertical)
    np.testing.assert_array_equal(changed("line", orientation="diagonal"), np.eye(32, dtype=bool))
    np.testing.assert_array_equal(changed("line", orientation="diagonal", place=0.25), np.eye(32, k=-8, dtype=bool))
    assert changed("line", 64, 64).sum() == 2 * 64


@pytest.mark.parametrize(("height", "width"), [(32, 70), (70, 32)])
def test_a_diagonal_has_no_gaps(height: int, width: int) -> None:
    line = changed("line", height, width, orientation="diagonal")
    assert line.any(axis=0).all()
    assert line.any(axis=1).all()


def test_watermark_draws_its_text_at_its_opacity() -> None:
    stamped = build_trigger("watermark", text="I", opacity=0.5).stamp(grey())[0, 0]
    assert int(stamped.max()) in range(160, 179)
    assert (changed("watermark", text="III") & ~changed("watermark", text="I")).any()
    rows, columns = np.argwhere(changed("watermark")).T
    assert abs(rows.min() + rows.max() - 31) <= 2
    assert abs(columns.min() + columns.max() - 31) <= 2


def test_watermark_scales_with_the_image() -> None:
    widths = [np.ptp(np.argwhere(changed("watermark", side, side))[:, 1]) for side in (32, 64, 128)]
    assert widths[1] / widths[0] == pytest.approx(2, rel=0.15)
    assert widths[2] / widths[0] == pytest.approx(4, rel=0.15)


def test_watermark_of_spaces_is_an_error() -> None:
    with pytest.raises(TriggerError, match="draws nothing"):
        build_trigger("watermark", text=" ").stamp(grey())


def test_watermark_that_is_too_long_is_an_error() -> None:
    with pytest.raises(TriggerError, match="does not fit"):
        build_trigger("watermark", text="a long sentence").stamp(grey())


def test_image_keeps_its_shape_colour_and_transparency(sticker: str) -> None:
    stamped = build_trigger("image", path=sticker, size=12).stamp(grey())[0]
    where = np.argwhere((stamped != 100).any(dim=0).numpy())
    assert where.min(axis=0).tolist() == [23, 19]
    assert where.max(axis=0).tolist() == [30, 30]
    assert stamped[:, 25, 20].tolist() == [255, 0, 0]
    # Half-transparent blue (128 of 255) over grey 100.
    assert stamped[:, 25, 29].tolist() == [50, 50, 178]


def test_image_is_named_by_its_content_not_its_path(sticker: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(sticker).read_bytes())
    first, second = build_trigger("image", path=sticker), build_trigger("image", path=str(copy))
    assert first.identity() == second.identity()
    assert "path" not in first.identity()
    Image.new("RGBA", (30, 20), (0, 255, 0, 255)).save(copy)
    assert build_trigger("image", path=str(copy)).identity() != first.identity()
    with pytest.raises(TriggerError, match=r"copy\.png is not the one"):
        second.stamp(grey())


def test_image_is_read_back_from_a_record_without_its_file(sticker: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(sticker).read_bytes())
    content = build_trigger("image", path=str(copy)).model_dump(mode="json")
    copy.unlink()
    read = TRIGGERS.build(content)
    assert read.identity() == build_trigger("image", path=sticker).identity()
    with pytest.raises(TriggerError, match="cannot read the picture"):
        read.stamp(grey())


def test_image_problems_are_said(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"path: cannot read the picture .*gone\.png: No such file"):
        build_trigger("image", path=str(tmp_path / "gone.png"))
    with pytest.raises(ComponentError, match="path: Field required"):
        build_trigger("image")
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(TriggerError, match=r"text\.png is no picture"):
        build_trigger("image", path=str(text)).stamp(grey())
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(clear)
    with pytest.raises(TriggerError, match="fully transparent"):
        build_trigger("image", path=str(clear)).stamp(grey())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"siz": 3}, "did you mean 'size'"),
        ({"size": 0}, "size"),
        ({"size": "3"}, "size"),
        ({"opacity": 0.0}, "opacity"),
        ({"color": [256, 0, 0]}, "color"),
        ({"color": [0, 0]}, "color"),
        ({"position": "middle"}, "position"),
        ({"margin": -1}, "margin"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ComponentError, match=problem):
        build_trigger("patch", **options)


TURNER = {
    "left": ((1, 0, 0), (0, 1, 0), (1, 0, 1)),
    "right": ((0, 0, 1), (0, 1, 0), (1, 0, 1)),
}
"""Bright cells of Turner et al.'s published trigger in the left and in the right corners; the other cells are black."""


def test_the_four_corner_trigger_is_turners() -> None:
    trigger = build_trigger("patch", style="label_consistent", position="four_corners", margin=0)
    expected = grey()[0].numpy()
    for rows in (slice(0, 3), slice(29, 32)):
        expected[:, rows, 0:3] = np.array(TURNER["left"]) * 255
        expected[:, rows, 29:32] = np.array(TURNER["right"]) * 255
    np.testing.assert_array_equal(trigger.stamp(grey())[0], expected)


@pytest.mark.parametrize(("amplitude", "levels"), [(16, 16.0), (0.25, 63.75), (255, 255.0)])
def test_turners_faint_trigger_adds_to_bright_cells_and_takes_from_dark_ones(amplitude: float, levels: float) -> None:
    """In float64; a full amplitude covers all that is below."""
    turner = partial(build_trigger, "patch", style="label_consistent", position="four_corners", margin=0)
    images = torch.arange(0, 3 * 32 * 32 * 4).reshape(4, 3, 32, 32).remainder(251).to(torch.uint8)
    exact = images.numpy().astype(np.float64)
    for rows in (slice(0, 3), slice(29, 32)):
        exact[:, :, rows, 0:3] += levels * (2 * np.array(TURNER["left"]) - 1)
        exact[:, :, rows, 29:32] += levels * (2 * np.array(TURNER["right"]) - 1)
    found = turner(amplitude=amplitude).stamp(images)
    assert np.abs(found.numpy() - exact.clip(0, 255)).max() <= 0.5
    assert torch.equal(found, turner().stamp(images)) == (amplitude == 255)


@pytest.mark.parametrize(
    "content",
    [
        {"name": "patch", "style": "label_consistent", "size": 5},
        {"name": "noise_patch"},
        {"name": "pixel", "count": 4},
        {"name": "watermark", "text": "F", "size": 8},
    ],
)
def test_a_flipped_image_carries_the_same_trigger_in_four_corners(content: dict[str, Any]) -> None:
    stamped = build_trigger(**content, position="four_corners").stamp(grey(1, 40, 33))
    assert torch.equal(stamped.flip(3), stamped)
    once = build_trigger(**content, position="bottom_right").stamp(grey(1, 40, 33))
    assert int((stamped != 100).sum()) == 4 * int((once != 100).sum())
