"""What the crops and flips of a stage leave of triggers that were stamped before them."""

from __future__ import annotations

import torch

from bdray.poisoning.stamping import PoisonedSet
from bdray.poisoning.trigger_survival import TriggerSurvival
from bdray.training.augmentation import crop, draw_crops
from bdray.training.loop import Stage


def trigger_kept(stage: Stage, items: PoisonedSet, unstamped: torch.Tensor) -> TriggerSurvival | None:
    """Measured over the stage's first epoch, with the very draws of its training.

    Args:
        items: what the stage trains on.
        unstamped: uint8, `M x 3 x S x S`: the images that are stamped, as they are before (`unstamped`).

    Returns:
        None where nothing is stamped.
    """
    if items.late is not None:
        # As many pixels as were stamped, by construction.
        whole = torch.tensor([1] * (len(unstamped) - items.unchanged), dtype=torch.int64)
        return TriggerSurvival.of(whole, whole)
    changed = (unstamped != items.overlay).any(1, keepdim=True)
    mask_of = items.overlay_row.cpu()
    # Stamped pixels by number, so that one is known again where a mirrored border repeats it.
    side = changed.shape[-1]
    numbers = changed * torch.arange(1, side**2 + 1, device=changed.device).view(1, 1, side, side)
    before, after = changed.sum((1, 2, 3)).cpu(), torch.zeros(len(changed), dtype=torch.int64)
    seen = torch.zeros(len(changed), dtype=torch.bool)
    device = stage.compute.device
    draws = stage.stream("augment", 1, device)
    for order in stage.orders(stage.stream("order", 1)):
        rows, columns = (
            part.to(changed.device) for part in draw_crops([len(order)], side, stage.augmentation, draws, device)
        )
        stamped = (mask_of[order] >= 0).nonzero().flatten()
        masks = mask_of[order[stamped]]
        here = stamped.to(changed.device)
        left = crop(numbers[masks.to(changed.device)], rows[here], columns[here], stage.augmentation).flatten(1)
        shown = torch.zeros(len(left), side**2 + 1, dtype=torch.bool, device=left.device).scatter_(1, left, True)
        after[masks] = shown[:, 1:].sum(1).cpu()
        seen[masks] = True
    # An epoch that is cut short (a rehearsal) has not shown them all.
    return TriggerSurvival.of(before[seen], after[seen])
