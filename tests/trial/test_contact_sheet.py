"""The small picture that every trial leaves."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from bdray.trial.contact_sheet import TILE, contact_sheet


def test_three_rows_of_clean_triggered_and_difference() -> None:
    clean = torch.full((4, 3, 32, 32), 100, dtype=torch.uint8)
    stamped = clean.clone()
    stamped[:, :, 0, 0] = 110
    with Image.open(io.BytesIO(contact_sheet(clean, stamped))) as sheet:
        pixels = np.array(sheet)
    enlarged = TILE // 32
    side = 32 * enlarged + enlarged
    assert pixels.shape == (3 * side + enlarged, 4 * side + enlarged, 3)
    corners = [pixels[enlarged + row * side, enlarged] for row in range(3)]
    # 255 // 10 is 25: the difference of 10 is shown 16 times as bright.
    assert [tuple(map(int, corner)) for corner in corners] == [(100,) * 3, (110,) * 3, (160,) * 3]


def test_nothing_changed_is_black() -> None:
    clean = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
    with Image.open(io.BytesIO(contact_sheet(clean, clean))) as sheet:
        pixels = np.array(sheet)
    assert pixels[-TILE // 2, TILE // 2].tolist() == [0, 0, 0]
