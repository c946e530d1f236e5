"""Size, orientation and levels of picture files, for data sets and for triggers alike."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 2**26
"""Pictures with more (8,192 x 8,192) are not decoded: a few kilobytes can unpack to gigabytes."""

BLACK = 2**12 - 1
"""Pictures of 16 bits without a higher level would be black with 8."""


def require_reasonable(image: Image) -> None:
    """Raises `ValueError` when an opened, not yet decoded picture is too large to decode."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width:,} x {image.height:,} pixels are more than {MAX_PIXELS:,}")


def upright(image: Image) -> Image:
    """The picture turned as its EXIF orientation says; as it is where that cannot be read."""
    from PIL import ImageOps

    # Of JPEG files Pillow has tried to read it before, and says nothing when it is asked again.
    with suppress(SyntaxError):
        return ImageOps.exif_transpose(image)
    return image


def to_rgb(image: Image) -> Image:
    """The picture in 8-bit RGB, transparency laid over white.

    Raises:
        ValueError: the pixels have no defined range (32-bit integers beyond 16 bits, floats).
    """
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        # Pillow would clip these at 255 instead of scaling them.
        levels = np.asarray(image)
        if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} have no defined range")
        return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
