"""From image files of any kind to square uint8 RGB arrays.

Choices (ours): pictures are turned as their EXIF orientation says, where it can be read; transparency is laid over
white; 16-bit levels are scaled to 8 bits by their whole range (pictures that use a sixteenth of it, as 12-bit ones do,
are refused); of an animation the first frame is used; colour profiles are ignored. The shorter side is resized with
Pillow's bicubic filter, which antialiases when it shrinks, and the centre square is cut out; a picture of the right
size keeps its exact pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bdray.data.sources import Pictures, Pixels
from bdray.errors import DataError
from bdray.pictures import BLACK, require_reasonable, to_rgb, upright

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as an image file in a class folder, whatever the case."""

DARK = 2**15 - 1
"""Where no 16-bit picture of a data set has a higher level, they are said to be dark, or refused (`BLACK`)."""

BATCH = 512
"""Pictures that are decoded ahead of the writer, so that memory stays small however many there are."""


class Decoder:
    """Decodes pictures in batches and remembers every file it could not read.

    Attributes:
        unreadable: (path, reason) of each such file, in order.
        deep: the highest level in each file of 16 bits, of 65,535.
        warnings: what Pillow warned of: metadata that it cannot read.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.unreadable: list[tuple[Path, str]] = []
        self.deep: dict[Path, int] = {}
        self.warnings: list[str] = []

    def batches(self, pictures: Pictures) -> Iterator[Pixels]:
        """The pictures in order, as uint8 `B x 3 x S x S`. Unreadable files leave zeros (see `check`)."""
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(pictures.labels), BATCH):
                chunk = pictures.images[start : start + BATCH]
                if isinstance(chunk, np.ndarray):
                    yield self._resized(chunk)
                else:
                    yield self._decoded(chunk, pool)

    def check(self) -> None:
        """Raises `DataError` that names the unreadable files, if there were any, or 16-bit ones that are black."""
        if not self.unreadable:
            if self.deep and (highest := max(self.deep.values())) <= BLACK:
                bits = max(highest.bit_length(), 1)
                raise DataError(
                    f"{self._range()}, as pictures of {bits} bits do, and would be black ({min(self.deep)}, ...); "
                    "stretch their levels to 16 bits, or save them with 8"
                )
            return
        count = len(self.unreadable)
        shown = [f"\n  {path}: {reason}" for path, reason in self.unreadable[:10]]
        more = f"\n  and {count - 10} more" if count > 10 else ""
        files = "1 image file" if count == 1 else f"{count} image files"
        raise DataError(f"cannot read {files}; repair or remove what is listed:{''.join(shown)}{more}")

    def notes(self) -> list[str]:
        """What is odd about the pictures, in sentences."""
        notes = []
        if self.deep and max(self.deep.values()) <= DARK:
            notes.append(f"{self._range()}: they are scaled by the whole range, and dark")
        if self.warnings:
            said = f"{len(self.warnings)} warnings about their metadata, such as: {self.warnings[0]}"
            notes.append(f"{said} Their pixels are read; an orientation that cannot be read is not applied")
        return notes

    def _range(self) -> str:
        count = "1 image file" if len(self.deep) == 1 else f"all {len(self.deep)} image files"
        return f"of 16 bits, {count} use levels up to {max(self.deep.values()):,} of 65,535"

    def _decoded(self, paths: Sequence[Path], pool: ThreadPoolExecutor) -> Pixels:
        batch = np.zeros((len(paths), 3, self.image_size, self.image_size), dtype=np.uint8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results = list(pool.map(self._attempt, paths))
        self.warnings += [" ".join(str(each.message).split()) for each in caught]
        for place, result in enumerate(results):
            if isinstance(result, str):
                self.unreadable.append((paths[place], result))
            else:
                batch[place] = result
        return batch

    def _attempt(self, path: Path) -> Pixels | str:
        try:
            return decode(path, self.image_size, deep=self.deep)
        except MemoryError:
            raise
        # Pillow's readers let errors of many kinds through (struct, zlib, SyntaxError, ...): each means a bad file.
        except Exception as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__

    def _resized(self, pixels: Pixels) -> Pixels:
        from PIL import Image

        if pixels.shape[-2:] == (self.image_size, self.image_size):
            return np.ascontiguousarray(pixels)
        return np.stack([fit(Image.fromarray(chw.transpose(1, 2, 0)), self.image_size) for chw in pixels])


def decode(path: Path, image_size: int, deep: dict[Path, int] | None = None) -> Pixels:
    """One image file as uint8 `3 x S x S`; see the module for how.

    Args:
        deep: gets the highest level of a file of 16 bits.

    Raises:
        Exception: whatever Pillow raises for a file it cannot read completely.
    """
    from PIL import Image

    if path.stat().st_size == 0:
        raise OSError("the file is empty")
    with Image.open(path) as image:
        require_reasonable(image)
        # Colours of 16 bits are cut to their upper halves while they are loaded, and only the file's raw mode says so.
        is_cut = ";16" in str(image.tile)
        image.load()
        rgb = to_rgb(upright(image))
        if deep is not None and image.mode.startswith("I"):
            deep[path] = int(np.asarray(image).max())
        elif deep is not None and is_cut:
            deep[path] = int(np.asarray(rgb).max()) * 256 + 255
        return fit(rgb, image_size)


def fit(image: Image, image_size: int) -> Pixels:
    """An RGB picture with its shorter side resized to `S` and the centre cut out, as uint8 `3 x S x S`."""
    from PIL import Image, ImageOps

    if image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
