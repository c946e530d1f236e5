"""Strong data augmentation as a defence (Borgnia et al. 2021, arXiv 2011.09527): cutout, RandAugment and CutMix, after
the data set's own crop and flip.

What is drawn is drawn on the CPU, so that nothing waits for a GPU, and geometry is a gather by positions that are
computed there, so that it is the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch

from bdray.gpu import to_device
from bdray.recipes import Strong
from bdray.regularizers.base import Mixing

HOLE = 2
"""A cutout hides a square of 1/2 of the side (DeVries and Taylor 2017: 16 of 32 pixels on CIFAR-10)."""

MAGNITUDE, LEVELS = 9, 30
"""RandAugment does two operations a picture, of 9 of 30 levels: the paper's defaults, and torchvision's."""

_STRENGTH = MAGNITUDE / LEVELS

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
PHOTOMETRIC = ("brightness", "color", "contrast", "sharpness")
"""Both with a sign."""
UNSIGNED = ("identity", "posterize", "solarize", "auto_contrast", "equalize")
NAMES = (*GEOMETRIC, *PHOTOMETRIC, *UNSIGNED)
"""Of RandAugment's operations, drawn with equal chances (Cubuk et al. 2020)."""

Change = Callable[[torch.Tensor], torch.Tensor]


def draw_strong(strong: Strong, counts: Sequence[int], side: int, generator: torch.Generator) -> torch.Tensor:
    """What happens to each picture of batches of these sizes, each drawn for by itself: int64, `2 x sum(counts)`, on
    the CPU, as is `generator`.

    `cutout`: row and column of the hole's centre. `randaugment`: each operation's place in `NAMES`, times two, plus one
    where its sign is negative. `cutmix`: nothing, it is drawn by the step (`draw_cutmix`).
    """
    if strong == "cutmix":
        return torch.zeros(2, sum(counts), dtype=torch.int64)
    end = side if strong == "cutout" else 2 * len(NAMES)
    return torch.cat([torch.randint(end, (2, count), generator=generator) for count in counts], 1)


def strengthen(images: torch.Tensor, strong: Strong, drawn: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """Changed copies of `images`.

    Args:
        images: uint8, `N x 3 x S x S`; left as they are.
        drawn: `draw_strong` of as many.
        fill: what cutout's holes show, uint8, `3`, on the device of `images`. What RandAugment moves in is black.
    """
    if strong == "cutmix":
        return images
    if strong == "cutout":
        holes = to_device(_holes(drawn, images.shape[-1]), images.device)
        return torch.where(holes[:, None], fill.view(1, 3, 1, 1), images)
    for operations in drawn:
        images = _photometric(_moved(images, operations), operations)
    return images


def leave(numbers: torch.Tensor, strong: Strong, drawn: torch.Tensor) -> torch.Tensor:
    """Numbers of pixels, int64, `N x 1 x S x S`, on the CPU, as `strengthen` leaves and moves them; 0 for what is
    hidden or moved in."""
    if strong == "cutout":
        return numbers.masked_fill(_holes(drawn, numbers.shape[-1])[:, None], 0)
    if strong == "randaugment":
        for operations in drawn:
            numbers = _moved(numbers, operations)
    return numbers


def draw_cutmix(batch_size: int, side: int, generator: torch.Generator) -> Mixing:
    """A box of every picture of a batch is that of another one, and so is as much of its label (Yun et al. 2019): one
    box a batch, its share of the picture drawn evenly from 0 to 1 before it is cut off at the border.

    Args:
        generator: on the CPU.
    """
    row, column = torch.randint(side, (2,), generator=generator).tolist()
    # Beta(1, 1), the paper's, is even.
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    half = int(0.5 * math.sqrt(share) * side)
    top, left, bottom, right = (
        max(row - half, 0),
        max(column - half, 0),
        min(row + half, side),
        min(column + half, side),
    )
    lam = 1 - (bottom - top) * (right - left) / side**2
    return Mixing("input", torch.randperm(batch_size, generator=generator), lam, (top, left, bottom, right))


def _holes(drawn: torch.Tensor, side: int) -> torch.Tensor:
    """Which pixels are hidden: bool, `N x S x S`. A hole ends at the border."""
    place, half = torch.arange(side), side // (2 * HOLE)
    down, aside = ((place >= centre[:, None] - half) & (place < centre[:, None] + half) for centre in drawn)
    hidden: torch.Tensor = down[:, :, None] & aside[:, None, :]
    return hidden


def _moved(images: torch.Tensor, operations: torch.Tensor) -> torch.Tensor:
    """Each picture as its operation moves it; those of other operations stay. In channels-last memory."""
    side = images.shape[-1]
    which = torch.where(operations < 2 * len(GEOMETRIC), operations, 2 * len(GEOMETRIC))
    places = to_device(_places(side)[which], images.device)
    flat = images.permute(0, 2, 3, 1).flatten(1, 2)
    flat = torch.cat([torch.zeros_like(flat[:, :1]), flat], 1)
    gathered = flat.gather(1, places[:, :, None].expand(-1, -1, images.shape[1]))
    return gathered.view(-1, side, side, images.shape[1]).permute(0, 3, 1, 2)


def _photometric(images: torch.Tensor, operations: torch.Tensor) -> torch.Tensor:
    """Each picture as its operation recolours it, in place."""
    for number in operations.unique().tolist():
        change = _changes().get(number)
        if change is not None:
            rows = to_device((operations == number).nonzero().flatten(), images.device)
            images.index_copy_(0, rows, change(images.index_select(0, rows)))
    return images


@lru_cache(maxsize=8)
def _places(side: int) -> torch.Tensor:
    """Which pixel each one shows, from 1, and 0 for none: int64, `2 * len(GEOMETRIC) + 1 x S * S`, the last as it is.
    torchvision is asked what it does with numbered pixels."""
    from torchvision.transforms.v2 import functional

    # Exact: these are whole numbers below 2**24, and the nearest pixel is taken.
    pixels = torch.arange(1, side**2 + 1, dtype=torch.float32).view(1, side, side)
    shear, shift, turn = math.degrees(math.atan(0.3 * _STRENGTH)), int(150 / 331 * side * _STRENGTH), 30 * _STRENGTH
    moves: list[Change] = []
    for sign in (1, -1):
        affine = partial(functional.affine, angle=0.0, scale=1.0)
        moves += [
            partial(affine, translate=[0, 0], shear=[sign * shear, 0.0], center=[0, 0]),
            partial(affine, translate=[0, 0], shear=[0.0, sign * shear], center=[0, 0]),
            partial(affine, translate=[sign * shift, 0], shear=[0.0, 0.0]),
            partial(affine, translate=[0, sign * shift], shear=[0.0, 0.0]),
            partial(functional.rotate, angle=sign * turn),
        ]
    both = torch.stack([move(pixels) for move in moves]).view(2, len(GEOMETRIC), side**2).transpose(0, 1).flatten(0, 1)
    return torch.cat([both, pixels.view(1, -1)]).long()


@lru_cache(maxsize=1)
def _changes() -> dict[int, Change]:
    """What changes colours, by its number in `draw_strong`."""
    from torchvision.transforms.v2 import functional

    blends: dict[str, Change] = {
        "brightness": torch.zeros_like,
        "color": _grey,
        "contrast": _mean_grey,
        "sharpness": _smoothed,
    }
    plain: dict[str, Change] = {
        "posterize": partial(functional.posterize, bits=8 - round(4 * _STRENGTH)),
        "solarize": partial(functional.solarize, threshold=255 * (1 - _STRENGTH)),
        "auto_contrast": _stretched,
        "equalize": functional.equalize,
    }
    found: dict[int, Change] = {}
    for place, name in enumerate(NAMES):
        for number, sign in ((2 * place, 1), (2 * place + 1, -1)):
            if name in blends:
                percent = 100 + sign * round(90 * _STRENGTH)
                found[number] = partial(_away_from, blends[name], percent=percent)
            elif name in plain:
                found[number] = plain[name]
    return found


# Whole numbers, where torchvision cuts float32 off at whole levels: then the last bit decides a level, and it differs
# between devices and even with how many pictures are computed at once.


def _away_from(degenerate: Change, images: torch.Tensor, percent: int) -> torch.Tensor:
    """`percent` of `images` and the rest of what they degenerate to, rounded (Pillow's `ImageEnhance`)."""
    wide = images.int()
    blended = (percent * wide + (100 - percent) * degenerate(wide) + 50).div(100, rounding_mode="floor")
    return blended.clamp(0, 255).to(torch.uint8)


def _grey(images: torch.Tensor) -> torch.Tensor:
    """ITU-R 601-2 luma in 16 bits, rounded, as Pillow has it: int32 `N x 1 x S x S`."""
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    return (19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16


def _mean_grey(images: torch.Tensor) -> torch.Tensor:
    grey = _grey(images)
    count = grey.shape[-1] * grey.shape[-2]
    total = grey.sum((2, 3), keepdim=True)
    return (2 * total + count).div(2 * count, rounding_mode="floor")


def _smoothed(images: torch.Tensor) -> torch.Tensor:
    """Each pixel five times and its eight neighbours, by 13; the border as it is (Pillow's `ImageFilter.SMOOTH`)."""
    side, inner = images.shape[-1], images[:, :, 1:-1, 1:-1]
    near = [images[:, :, row : side - 2 + row, column : side - 2 + column] for row in range(3) for column in range(3)]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (2 * (torch.stack(near).sum(0) + 4 * inner) + 13).div(26, rounding_mode="floor")
    return smooth


def _stretched(images: torch.Tensor) -> torch.Tensor:
    """Each channel over all levels; one of a single level stays (Pillow's `ImageOps.autocontrast`)."""
    wide = images.int()
    low, high = wide.amin((2, 3), keepdim=True), wide.amax((2, 3), keepdim=True)
    span = (high - low).clamp(min=1)
    stretched = (2 * 255 * (wide - low) + span).div(2 * span, rounding_mode="floor")
    return torch.where(high > low, stretched, wide).to(torch.uint8)
