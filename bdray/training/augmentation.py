"""Random crop and flip of uint8 batches: one gather, wherever the batch lies."""

from __future__ import annotations

import torch

from bdray.data.base import Augmentation


def augment(images: torch.Tensor, mode: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Randomly cropped (after reflecting 1/8 of the side) and flipped copies of `images`.

    Args:
        images: `N x 3 x S x S`, any dtype; left as they are.
        mode: `crop_flip`, `crop`, or `none` (returns `images` themselves).
        generator: on the device of `images`.

    Returns:
        Same shape and dtype, in channels-last memory.
    """
    if mode == "none":
        return images
    n, _, side, _ = images.shape
    device = images.device
    pad = max(1, side // 8)
    shift = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator, device=device)
    place = torch.arange(side, device=device)
    rows, cols = _reflect(place + shift[0], side), _reflect(place + shift[1], side)
    if mode == "crop_flip":
        flip = torch.rand((n, 1), generator=generator, device=device) < 0.5
        cols = torch.where(flip, cols.flip(1), cols)
    pixels = images.permute(0, 2, 3, 1)
    which = torch.arange(n, device=device)[:, None, None]
    return pixels[which, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def _reflect(place: torch.Tensor, side: int) -> torch.Tensor:
    """Positions outside `[0, side)` mirrored back inside, the border itself not repeated."""
    place = place.abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)
