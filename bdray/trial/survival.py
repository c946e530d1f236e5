"""What the augmentation of a stage leaves of triggers that were stamped before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from bdray.gpu import to_device
from bdray.poisoning.stamping import PoisonedSet
from bdray.record import TriggerSurvival
from bdray.training.augmentation import crop, draw_crops
from bdray.training.loop import Stage
from bdray.training.strong import draw_cutmix, draw_strong, leave


def trigger_kept(stage: Stage, items: PoisonedSet, unstamped: torch.Tensor) -> TriggerSurvival | None:
    """Measured over the stage's first epoch, with the very draws of its training.

    Args:
        items: what the stage trains on.
        unstamped: uint8, `M x 3 x S x S`: the images that are stamped, as they are before (`unstamped`).

    Returns:
        None where nothing is stamped, or where stamps of the loop itself are pasted over (`cutmix`).
    """
    if items.late is not None and stage.strong == "cutmix":
        return None
    if items.late is not None:
        # As many pixels as were stamped, by construction.
        whole = torch.tensor([1] * (len(unstamped) - items.unchanged), dtype=torch.int64)
        return _survival(whole, whole)
    changed = (unstamped != items.overlay.cpu()).any(1, keepdim=True)
    mask_of, side = items.overlay_row.cpu(), changed.shape[-1]
    # Stamped pixels by number, so that one is known again where a mirrored border repeats it.
    number = torch.arange(1, side**2 + 1).view(1, 1, side, side)
    before, after = changed.sum((1, 2, 3)), torch.zeros(len(changed), dtype=torch.int64)
    parts, places = _crops_of_stamped(stage, mask_of, side)
    # An epoch that is cut short (a rehearsal) does not show them all.
    seen = torch.cat(parts)
    altered = _altered(stage, mask_of, side)
    for masks, (rows, columns) in zip(parts, places.split([len(masks) for masks in parts], 1), strict=True):
        left = crop(changed[masks] * number, rows, columns, stage.augmentation)
        left = next(altered)(left).flatten(1)
        shown = torch.zeros(len(left), side**2 + 1, dtype=torch.bool).scatter_(1, left, True)
        after[masks] = shown[:, 1:].sum(1)
    return _survival(before[seen], after[seen])


def _crops_of_stamped(stage: Stage, mask_of: torch.Tensor, side: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Of each batch of the first epoch, which stamped images it has, and how all of those are cropped and flipped:
    int64, `2 x M x S` (rows, columns). Drawn on the stage's device, as in training, and waited for once."""
    device = stage.compute.device
    draws, parts, places = stage.stream("augment", 1, device), [], []
    orders = stage.orders(stage.stream("order", 1))
    for order, flipped in zip(orders, stage.flips(1, orders), strict=True):
        drawn = torch.stack(draw_crops([len(order)], side, stage.augmentation, draws, device, flipped=flipped))
        stamped = (mask_of[order] >= 0).nonzero().flatten()
        parts.append(mask_of[order[stamped]])
        places.append(drawn.index_select(1, to_device(stamped, device)))
    return parts, torch.cat(places, 1).cpu()


def _altered(stage: Stage, mask_of: torch.Tensor, side: int) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """For each batch of the first epoch, what strong augmentation does to the numbered pixels of its stamped images. Of
    a box that `cutmix` pastes nothing is left: what it shows is another image's."""
    strong, drawn, mixed = stage.strong, stage.strong_stream(1), stage.stream("mixup", 1)
    for order in stage.orders(stage.stream("order", 1)):
        stamped = mask_of[order] >= 0
        if strong is None:
            yield lambda numbers: numbers
        elif strong == "cutmix":
            yield partial(_without, box=draw_cutmix(len(order), side, mixed).box)
        else:
            yield partial(leave, strong=strong, drawn=draw_strong(strong, [len(order)], side, drawn)[:, stamped])


def _without(numbers: torch.Tensor, box: tuple[int, int, int, int] | None) -> torch.Tensor:
    if box is None:
        return numbers
    top, left, bottom, right = box
    numbers = numbers.clone()
    numbers[:, :, top:bottom, left:right] = 0
    return numbers


def _survival(before: torch.Tensor, after: torch.Tensor) -> TriggerSurvival | None:
    """Counted from how many pixels of each image were stamped, and how many of those it still shows. int64, `M` both;
    None when none had any.

    >>> _survival(torch.tensor([9, 9, 9, 9, 0]), torch.tensor([9, 9, 4, 0, 0]))
    TriggerSurvival(images=4, whole=0.5, in_part=0.25, not_at_all=0.25, each_once=True)
    """
    changed = before > 0
    images = int(changed.sum())
    if not images:
        return None
    whole, gone = int((after >= before)[changed].sum()), int((after == 0)[changed].sum())
    return TriggerSurvival(
        images=images,
        whole=whole / images,
        in_part=(images - whole - gone) / images,
        not_at_all=gone / images,
        each_once=True,
    )
