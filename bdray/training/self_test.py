"""Whether a device computes what the CPU computes."""

from __future__ import annotations

import torch
from torch.nn import functional

from bdray.gpu_errors import gpu_error

_CLOSE = 0.02
"""Relative to the largest value: TF32 keeps 10 bits."""


def problem_of(device: torch.device) -> str:
    """What is wrong with a device after one convolution and one matrix product.

    Returns:
        "" where it computes as the CPU does, and where others leave it no memory to try.
    """
    generator = torch.Generator().manual_seed(0)
    images, kernels = (torch.randn(4, 8, side, side, generator=generator) for side in (16, 3))
    left, top = torch.randn(2, 64, 64, generator=generator)
    try:
        found = [functional.conv2d(images.to(device), kernels.to(device)).cpu()]
        found.append((left.to(device) @ top.to(device)).cpu())
    except RuntimeError as error:
        said = gpu_error(error)
        return "" if said and said.kind == "memory" else str(error).partition("\n")[0]
    expected = (functional.conv2d(images, kernels), left @ top)
    for name, value, right in zip(("convolution", "matrix product"), found, expected, strict=True):
        if not torch.allclose(value, right, rtol=0.0, atol=_CLOSE * float(right.abs().max())):
            return f"a {name} comes to something else than on the CPU"
    return ""
