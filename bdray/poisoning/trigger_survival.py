"""What augmentation leaves of triggers that were stamped before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch


class TriggerSurvival(BaseModel):
    """Shares of the stamped training images that still carry the trigger when they are trained on, over one epoch.

    Of the pixels that the trigger changed, those are counted that the image still shows after crop and flip, each once
    however often a crop's mirrored border repeats it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    """Stamped images that the trigger changed: what the shares are of. Cover images count."""
    whole: float
    """Every pixel that was stamped."""
    in_part: float
    """Some, but fewer."""
    not_at_all: float
    """None: an image with a label of the attacker's choice and nothing to see."""
    each_once: bool = False
    """False in records of earlier versions, which counted a pixel as often as a mirrored border showed it: too many
    were whole (of a 3 x 3 patch one pixel from its corner of 32: 52 % instead of 44 %)."""

    @classmethod
    def of(cls, before: torch.Tensor, after: torch.Tensor) -> TriggerSurvival | None:
        """Counted from how many pixels of each image were stamped, and how many of those it still shows. int64, `M`
        both; None when none had any.

        >>> import torch
        >>> TriggerKept.of(torch.tensor([9, 9, 9, 9, 0]), torch.tensor([9, 9, 4, 0, 0]))
        TriggerKept(images=4, whole=0.5, in_part=0.25, not_at_all=0.25, each_once=True)
        """
        changed = before > 0
        images = int(changed.sum())
        if not images:
            return None
        whole, gone = int((after >= before)[changed].sum()), int((after == 0)[changed].sum())
        return cls(
            images=images,
            whole=whole / images,
            in_part=(images - whole - gone) / images,
            not_at_all=gone / images,
            each_once=True,
        )
