"""Random crop and flip of uint8 batches: one gather for several of them, wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad as with_border

from bdray.data.base import Augmentation


def augment(
    images: torch.Tensor,
    mode: Augmentation,
    generator: torch.Generator,
    flipped: torch.Tensor | None = None,
    counts: Sequence[int] | None = None,
) -> torch.Tensor:
    """Randomly cropped (after reflecting 1/8 of the side, or adding so much black) and flipped copies of `images`.

    Args:
        images: `N x 3 x S x S`, any dtype; left as they are.
        mode: `crop_flip`, `crop`, `zero_crop_flip` (black outside), or `none` (returns `images` themselves).
        generator: on the device of `images`.
        flipped: which images are flipped, bool, `N`, on their device; None: drawn.
        counts: of batches that follow each other in `images`: each is drawn for by itself, so that it comes out as if
            it were alone. None: they are one batch.

    Returns:
        Same shape and dtype, in channels-last memory.
    """
    if mode == "none":
        return images
    counts = [len(images)] if counts is None else counts
    rows, columns = draw_crops(counts, images.shape[-1], mode, generator, images.device, flipped=flipped)
    return crop(images, rows, columns, mode)


def draw_crops(
    counts: Sequence[int],
    side: int,
    mode: Augmentation,
    generator: torch.Generator,
    device: torch.device,
    *,
    flipped: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which row and which column of an image each row and column of its copy is: two int64 `sum(counts) x side`, on
    `device`, where `generator` is too; `side` stands for what is black. See `augment`; `none` draws nothing."""
    place = torch.arange(side, device=device)
    if mode == "none":
        return place.expand(sum(counts), side), place.expand(sum(counts), side)
    pad, outside = max(1, side // 8), _black if mode == "zero_crop_flip" else _reflect
    shifts, chances = [], []
    for count in counts:
        shifts.append(torch.randint(-pad, pad + 1, (2, count, 1), generator=generator, device=device))
        if mode != "crop" and flipped is None:
            chances.append(torch.rand(count, generator=generator, device=device))
    down, aside = torch.cat(shifts, 1)
    rows, columns = outside(place + down, side), outside(place + aside, side)
    if mode != "crop":
        flipped = torch.cat(chances) < 0.5 if flipped is None else flipped
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    return rows, columns


def alternating_flips(count: int, epoch: int, generator: torch.Generator) -> torch.Tensor:
    """Which of a stage's images are flipped in `epoch` (from 1): bool, `count`, on the CPU; each in every other epoch.

    `generator`: gives the same bits in every epoch: of a stream that none indexes.
    """
    first = torch.rand(count, generator=generator) < 0.5
    return first if epoch % 2 else ~first


def crop(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, mode: Augmentation) -> torch.Tensor:
    """Copies of `images` with these rows and columns (`draw_crops` of the same mode), in channels-last memory."""
    pixels = images.permute(0, 2, 3, 1)
    if mode == "zero_crop_flip":
        pixels = with_border(pixels, (0, 0, 0, 1, 0, 1))
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return pixels[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflect(place: torch.Tensor, side: int) -> torch.Tensor:
    """Positions outside `[0, side)` mirrored back inside, the border itself not repeated."""
    place = place.abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)


def _black(place: torch.Tensor, side: int) -> torch.Tensor:
    """Positions outside `[0, side)` as `side`: the row and the column of zeros that `crop` adds."""
    return torch.where((place < 0) | (place >= side), side, place)
