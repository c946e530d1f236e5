"""Shares of a GPU: arithmetic only. Margin, context and the limit are our choice. And the way of tensors to one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MARGIN = 0.1
"""Of a measured peak, on top: later steps fragment memory and choose other kernels."""

CONTEXT_BYTES = 600 * 2**20
"""What a process takes on a GPU beside its tensors (the CUDA context and library workspaces) where nothing measured it:
for a share that is given by hand, and where the driver tells nothing."""

MOST_ON_ONE_GPU = 8
"""Trials that `gpu: auto` puts on a card at most, however small they are: memory is all that is measured."""


def share_of(peak_bytes: int, total_bytes: int, context_bytes: int = CONTEXT_BYTES) -> float:
    """The smallest 1/n of a card of `total_bytes` that holds the peak with margin and context; 1 at most."""
    # A share leaves the allocator no less than the context, as `allocator_fraction` promises.
    needed = max(peak_bytes * (1 + MARGIN), context_bytes) + context_bytes
    return min(1.0, round_gpu(max(needed / total_bytes, 1 / MOST_ON_ONE_GPU)))


def peak_within(share: float, total_bytes: int, context_bytes: int = CONTEXT_BYTES) -> float:
    """The largest peak for which `share_of` a card is no more than `share`."""
    return (share * total_bytes - context_bytes) / (1 + MARGIN)


def allocator_fraction(share: float, total_bytes: int, context_bytes: int = CONTEXT_BYTES) -> float:
    """The part of a card that the allocator of a trial with this share may use; the context takes the rest."""
    if share >= 1.0:
        return 1.0
    # A share smaller than two contexts (the user's own number) still leaves the allocator half of it.
    return max(share - context_bytes / total_bytes, share / 2)


def round_gpu(gpu: float) -> float:
    """The smallest of 0, ..., 1/3, 1/2, 1, 2, 3, ... that is at least `gpu`: what packs without gaps."""
    if gpu <= 0.0:
        return 0.0
    if gpu > 0.5:
        return float(math.ceil(gpu * (1 - 1e-9)))
    return 1.0 / math.floor(1.0 / max(gpu, 1e-6) * (1 + 1e-9))


def show_gpu(gpu: float | str) -> str:
    """`1/3` rather than 0.333."""
    if isinstance(gpu, str) or gpu >= 1.0 or gpu == 0.0:
        return gpu if isinstance(gpu, str) else f"{gpu:g}"
    return f"1/{round(1 / gpu)}"


def is_gpu(device: torch.device) -> bool:
    """Whether `device` is a GPU and not the host: has memory, streams and generators of its own."""
    return device.type not in ("cpu", "meta")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor`, which lies on the CPU, on `device`. Never waits: a copy from pageable memory would, for all that the
    device still has to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if is_gpu(device) else tensor.to(device)
