"""Distances between clean and stamped images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WINDOW = 11
_SIGMA = 1.5
_CHUNK_VALUES = 1 << 21


def largest_change(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The largest change of any value in each image, in levels 0..255. uint8 `N x C x H x W` both; int32, `N`."""
    import torch

    changes = [(a.int() - b.int()).abs().flatten(1).amax(dim=1) for a, b in chunks(first, second)]
    return torch.cat(changes)


def chunks(first: torch.Tensor, second: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
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
