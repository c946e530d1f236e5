"""A trigger off its place, and a part of it: what a model that learnt this very trigger should not answer to.

Both are made from what a trigger does to images, whatever it is, so that every trigger has them, those of users too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bdray.triggers.base import Trigger

if TYPE_CHECKING:
    import torch

Variation = Literal["whole", "off_position", "part"]
"""`whole`: the trigger as it is; `off_position`: moved up and left by 3/8 of the side, what leaves the image coming in
on the other side; `part`: of the box that holds its changes in an image, the left half (the upper one of a higher box),
the rest of the image as it was. Both are our choice."""


def vary(
    variation: Variation, trigger: Trigger, images: torch.Tensor, *, generator: torch.Generator
) -> torch.Tensor | None:
    """`images` stamped with a variation of `trigger`: uint8, `N x 3 x H x W`, on their device.

    Args:
        images: uint8, `N x 3 x H x W`; left as they are.
        generator: see `Trigger.stamp`; the same one gives the same places for all variations.

    Returns:
        None where the variation is no other picture: off its place a trigger without a place (`filter`, a `random`
        position) or that stamps no moved picture (`given`), a part of a single pixel.

    Raises:
        TriggerError: see `Trigger.stamp`.
    """
    import torch

    state = generator.get_state()
    stamped = trigger.stamp(images, generator=generator)
    if variation == "whole":
        return stamped
    if variation == "part":
        varied = _keep_half(images, stamped)
    elif any(getattr(one, "position", "") == "random" or one.ONLY_ORIGINALS for one in trigger.members):
        return None
    else:
        generator.set_state(state)
        varied = _moved(trigger, images, generator)
    return None if torch.equal(varied, stamped) else varied


def _moved(trigger: Trigger, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Stamped in a frame that is moved the other way: what is around the trigger stays where it was.

    3/8 leaves a patch of a quarter of the side whole, wherever it was, and is no multiple of the sinusoid's period.
    """
    down, right = (3 * side // 8 for side in images.shape[-2:])
    moved = trigger.stamp(images.roll((down, right), (-2, -1)), generator=generator)
    return moved.roll((-down, -right), (-2, -1))


def _keep_half(images: torch.Tensor, stamped: torch.Tensor) -> torch.Tensor:
    """`images` with the changes of `stamped` in one half of each image's box of changes, the larger where it is odd."""
    import torch

    changed = (images != stamped).any(dim=1)
    top, height = _extent(changed.any(dim=2))
    left, width = _extent(changed.any(dim=1))
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    upper = rows.view(1, -1, 1) < (top + (height + 1) // 2).view(-1, 1, 1)
    lefter = columns.view(1, 1, -1) < (left + (width + 1) // 2).view(-1, 1, 1)
    kept = torch.where((width >= height).view(-1, 1, 1), lefter, upper)
    return torch.where(kept.unsqueeze(1), stamped, images)


def _extent(marked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First marked position of each row and how many there are from it to the last. bool `N x L`; int64 `N`, twice."""
    first = marked.int().argmax(dim=1)
    last = marked.shape[1] - 1 - marked.flip(1).int().argmax(dim=1)
    return first, last - first + 1
