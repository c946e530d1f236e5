"""What the losses share so that neither their values nor their gradients overflow or become NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NEGLIGIBLE = 1e-12
"""A vector whose largest entry is below this counts as zero: it has no direction and gets no gradient."""

COLUMNS_AT_ONCE = 4096


def in_full_precision(vectors: torch.Tensor) -> torch.Tensor:
    """`N x ...` as an `N x D` matrix in float32, or in float64 where it already is."""
    import torch

    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return wide.flatten(1)


def split_scale(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`vectors` (`N x D`) divided by the largest absolute entry of their row, and that entry (`N x 1`, no gradient).

    The squares of what is left can neither overflow nor vanish. A row that counts as zero comes back as zeros
    without a gradient, with scale 0.
    """
    import torch

    largest = vectors.detach().abs().amax(dim=1, keepdim=True)
    is_zero = largest < NEGLIGIBLE
    scaled = torch.where(is_zero, torch.zeros_like(vectors), vectors / torch.where(is_zero, 1.0, largest))
    return scaled, torch.where(is_zero, 0.0, largest)


def normalized(vectors: torch.Tensor) -> torch.Tensor:
    """The rows of `vectors` (`N x D`) at Euclidean length 1; zero rows stay zero."""
    import torch

    scaled, scale = split_scale(vectors)
    return scaled / torch.where(scale == 0.0, 1.0, scaled.square().sum(dim=1, keepdim=True)).sqrt()


def pairwise_distances(vectors: torch.Tensor) -> torch.Tensor:
    """Euclidean distances `N x N` between the rows of `vectors` (`N x D`); zero distances get no gradient."""
    import torch

    # Not through a product of matrices, which is faster but cancels where rows lie close together. And not
    # torch.pdist, whose gradient crashes the process on an empty batch (torch 2.15).
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")


def squared_distances(vectors: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances `N x N` between the rows of `vectors` (`N x D`), in batches of columns."""
    import torch

    # The squares stay finite: past this no other row's distance could be told from it anyway.
    limit = torch.finfo(vectors.dtype).max ** 0.4
    # The gradient of cdist takes N x N x D numbers on a GPU: 17 GB for 128 rows of a wide hidden layer, if whole.
    parts = [pairwise_distances(part).clamp(max=limit).square() for part in vectors.split(COLUMNS_AT_ONCE, dim=1)]
    return torch.stack(parts).sum(dim=0)


def positive_pairs(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which `(i, j)` share a label though `i != j`, and which are `i == j`: two bool matrices `N x N`."""
    import torch

    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return (labels[:, None] == labels[None, :]) & ~itself, itself
