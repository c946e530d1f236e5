"""The small picture every trial leaves: clean, triggered, difference. Cheap: no figure library is loaded for it."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torchvision.utils import make_grid

TILE = 64
"""Least side of a picture on the sheet, in pixels."""


def contact_sheet(clean: torch.Tensor, stamped: torch.Tensor) -> bytes:
    """A PNG of three rows: clean images, triggered ones, and their difference, amplified by a power of two.

    Args:
        clean, stamped: uint8, `N x 3 x S x S`, on the CPU.
    """
    difference = (stamped.int() - clean.int()).abs()
    factor = 255 // max(1, int(difference.max()))
    amplified = (difference * (1 << (factor.bit_length() - 1))).to(torch.uint8)
    sheet = make_grid(torch.cat([clean, stamped, amplified]), nrow=len(clean), padding=1, pad_value=255)
    picture = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    enlarge = max(1, TILE // clean.shape[-1])
    picture = picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()
