"""What augmentation leaves of triggers that were stamped before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch


class TriggerKept(BaseModel):
    """Shares of the stamped training images that still carry the trigger when they are trained on, over one epoch.

    Pixels that the trigger changed are counted before and after crop and flip. A crop's mirrored border may show some
    of them twice, and each counts: `whole` says how much of the trigger is there, not that it is where it was stamped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    """Stamped images that the trigger changed: what the shares are of. Cover images count."""
    whole: float
    """At least as many triggered pixels as were stamped."""
    in_part: float
    """Some, but fewer."""
    not_at_all: float
    """None: an image with a label of the attacker's choice and nothing to see."""

    @classmethod
    def of(cls, before: torch.Tensor, after: torch.Tensor) -> TriggerKept | None:
        """Counted from the triggered pixels of each image. int64, `M` both; None when none had any.

        >>> import torch
        >>> TriggerKept.of(torch.tensor([9, 9, 9, 9, 0]), torch.tensor([9, 12, 4, 0, 0]))
        TriggerKept(images=4, whole=0.5, in_part=0.25, not_at_all=0.25)
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
        )
