"""Previews: the pixels of the pictures are on the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdray.errors import TriggerError
from bdray.report.preview import draw_preview
from bdray.triggers import build_trigger

GREY = torch.full((4, 3, 32, 32), 120, dtype=torch.uint8)


def colours(path: Path) -> dict[tuple[int, ...], int]:
    pixels = np.array(Image.open(path).convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(value.tolist()): int(count) for value, count in zip(values, counts, strict=True)}


def test_preview_shows_clean_triggered_and_amplified_difference(tmp_path: Path) -> None:
    trigger = build_trigger("patch", size=16, color=(120, 120, 150))
    draw_preview(GREY, [("a patch", trigger)], tmp_path / "preview.png")
    found = colours(tmp_path / "preview.png")
    tile = (1.05 * 160) ** 2
    # Three images of grey; a quarter of each second one stamped; the difference of 30 shown eight times as large.
    assert found[120, 120, 120] == pytest.approx(tile * 3 * 1.75, rel=0.06)
    assert found[120, 120, 150] == pytest.approx(tile * 3 * 0.25, rel=0.06)
    assert found[0, 0, 240] == pytest.approx(tile * 3 * 0.25, rel=0.06)
    assert found[0, 0, 0] == pytest.approx(tile * 3 * 0.75, rel=0.06)


def test_preview_has_a_row_for_every_trigger(tmp_path: Path) -> None:
    triggers = [
        ("red", build_trigger("patch", color=(255, 0, 0))),
        ("green", build_trigger("patch", color=(0, 255, 0))),
    ]
    heights = []
    for count in (1, 2):
        draw_preview(GREY, triggers[:count], tmp_path / "preview.png")
        heights.append(Image.open(tmp_path / "preview.png").height)
    assert heights[1] > heights[0]
    found = colours(tmp_path / "preview.png")
    assert found[255, 0, 0] == pytest.approx(found[0, 255, 0], rel=0.1)


def test_the_same_preview_has_the_same_bytes(tmp_path: Path) -> None:
    trigger = build_trigger("patch", position="random")
    for name in ("a.png", "b.png"):
        draw_preview(GREY, [("patch", trigger)], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("count", "height", "width"), [(1, 32, 32), (2, 24, 48), (9, 200, 100)])
def test_takes_few_images_and_other_shapes(tmp_path: Path, count: int, height: int, width: int) -> None:
    images = torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    draw_preview(images, [("blend", build_trigger("blend"))], tmp_path / "a.png")
    assert len(colours(tmp_path / "a.png")) > 100


def test_a_trigger_that_changes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TriggerError, match="changes no pixel"):
        draw_preview(GREY, [("same", build_trigger("patch", color=(120, 120, 120)))], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
