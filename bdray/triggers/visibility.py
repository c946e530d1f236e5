"""How visible a trigger is: three distances between clean and stamped images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from bdray.errors import TriggerError
from bdray.triggers.base import unchanged

if TYPE_CHECKING:
    import torch

VISIBILITY_IMAGES = 256
"""PSNR, SSIM and the mean change are over at most this many images of a set, the largest change is over all."""

_WINDOW = 11
_SIGMA = 1.5
_CHUNK_VALUES = 1 << 21


class Visibility(BaseModel):
    """Distances between clean and stamped images, over the images that were compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    l_inf: float | None
    """The largest change of any value in any image there is, in levels 0..255; None in records of early versions."""
    l_inf_mean: float
    """Mean over images of the largest change in each, in levels 0..255."""
    psnr_db: float | None
    """Mean peak signal to noise ratio in dB of the images that changed; None when none did."""
    ssim: float
    """Mean structural similarity (Wang et al. 2004), 1 for equal images."""
    compared_images: int | None = None
    """How many images the means are over; None in records of earlier versions."""
    measured_on: Literal["test", "training"] = "test"
    """Whether those are triggered test images, or poisoned training images: original against perturbed and stamped,
    where the strategy perturbs."""
    unchanged_images: int
    """Of all triggered test images, those that the trigger leaves as they were."""
    unchanged_training_images: int | None = None
    """Of all stamped training images, the same; None where none was counted."""


def visibility(clean: torch.Tensor, stamped: torch.Tensor) -> Visibility:
    """How much `stamped` differs from `clean`. Both uint8, `N x 3 x H x W`, `N >= 1`, in step; those that
    are equal are counted as `unchanged_images`.

    Raises:
        TriggerError: the two differ in shape, are not uint8, or hold no image.
    """
    import torch

    if clean.shape != stamped.shape or clean.dtype != torch.uint8 or stamped.dtype != torch.uint8 or not len(clean):
        raise TriggerError(
            f"visibility compares uint8 images of one shape, got {tuple(clean.shape)} and {tuple(stamped.shape)}"
        )
    pairs = _chunks(clean, stamped)
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


def largest_change(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The largest change of any value in each image, in levels 0..255. uint8 `N x C x H x W` both; int32, `N`."""
    import torch

    changes = [(a.int() - b.int()).abs().flatten(1).amax(dim=1) for a, b in _chunks(first, second)]
    return torch.cat(changes)


def _chunks(first: torch.Tensor, second: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both in step, in pieces that do not fill the memory."""
    step = max(1, _CHUNK_VALUES // first[0].numel())
    return list(zip(first.split(step), second.split(step), strict=True))


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio of each image: `10 log10(255^2 / MSE)` in dB, infinite for equal images.
    uint8 `N x C x H x W` both; float64, `N`."""
    squared = (first.double() - second.double()).square().flatten(1).mean(dim=1)
    return 10 * (255.0**2 / squared).log10()


def ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image, averaged over channels and over the places where the window fits.

    Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to structural
    similarity", equation 13: Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255. Images smaller
    than the window get the largest odd window that fits.

    Args:
        first, second: uint8, `N x C x H x W`.

    Returns:
        float64, `N`, at most 1.
    """
    import torch
    from torch.nn import functional

    window = min(_WINDOW, (min(first.shape[-2:]) - 1) // 2 * 2 + 1)
    offsets = torch.arange(window, dtype=torch.float64, device=first.device) - window // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = weights / weights.sum()

    def local_mean(values: torch.Tensor) -> torch.Tensor:
        flat = values.flatten(0, 1).unsqueeze(1)
        return functional.conv2d(functional.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

    x, y = first.double(), second.double()
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = local_mean(x * x) - mean_x**2
    var_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.view(len(first), -1).mean(dim=1)
