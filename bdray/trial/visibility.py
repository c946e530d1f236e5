"""How visible a trigger is: three distances between clean and stamped images."""

from __future__ import annotations

import torch

from bdray.errors import TriggerError
from bdray.record import Visibility
from bdray.triggers.base import unchanged
from bdray.triggers.distances import chunks, largest_change, psnr, ssim


def visibility(clean: torch.Tensor, stamped: torch.Tensor) -> Visibility:
    """How much `stamped` differs from `clean`. Both uint8, `N x 3 x H x W`, `N >= 1`, in step; those that
    are equal are counted as `unchanged_images`.

    Raises:
        TriggerError: the two differ in shape, are not uint8, or hold no image.
    """
    if clean.shape != stamped.shape or clean.dtype != torch.uint8 or stamped.dtype != torch.uint8 or not len(clean):
        raise TriggerError(
            f"visibility compares uint8 images of one shape, got {tuple(clean.shape)} and {tuple(stamped.shape)}"
        )
    pairs = chunks(clean, stamped)
    same = torch.cat([unchanged(a, b) for a, b in pairs])
    largest = largest_change(clean, stamped)
    ratio = torch.cat([psnr(a, b) for a, b in pairs])[~same]
    return Visibility(
        l_inf=float(largest.max()),
        l_inf_mean=float(largest.double().mean()),
        psnr_db=float(ratio.mean()) if len(ratio) else None,
        ssim=float(torch.cat([ssim(a, b) for a, b in pairs]).mean()),
        compared_images=len(clean),
        unchanged_images=int(same.sum()),
    )
