"""Projected gradient ascent on the loss inside an l-infinity ball: what clean-label poisoning hides an image's own
class with (Turner et al. 2019, arXiv 1912.02771, section 4; the method is Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdray.gpu import to_device
from bdray.intensity import whole_levels

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def pgd_linf(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Images moved to raise the cross-entropy of `labels` under `model`.

    Starts at a uniform random point of the ball, then `steps` times moves by `step_size` along the gradient's sign and
    back into ball and range. The caller puts the model into evaluation mode, and calls this in batches.

    Args:
        model: maps float images in [0, 1] to logits `N x K` (it normalises them itself).
        images: float, `N x 3 x H x W`, in [0, 1]; left as they are.
        labels: int64, `N`.
        epsilon: radius of the ball, as a fraction of the range.
        step_size: as a fraction of the range.
        steps: how many; 0 leaves the random start.
        generator: draws the start; on the CPU wherever the images lie, so that every device starts at the same point.

    Returns:
        float, `N x 3 x H x W`, in [0, 1], nowhere farther than `epsilon` from `images`.
    """
    import torch
    from torch.nn import functional

    low, high = (images - epsilon).clamp(min=0.0), (images + epsilon).clamp(max=1.0)
    start = torch.rand(images.shape, generator=generator, dtype=images.dtype)
    moved = low + (high - low) * to_device(start, images.device)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            # Summed, not averaged: a small gradient must not underflow because its batch is large.
            loss = functional.cross_entropy(model(moved).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = torch.clamp(moved.detach() + step_size * gradient.sign(), low, high)
    return moved.detach()


@dataclass(frozen=True)
class Adversary:
    """Projected gradient ascent in every step of training (Madry et al. 2018, section 2.1)."""

    epsilon: float
    steps: int

    def __call__(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """`pgd_linf` with steps of `2.5 * epsilon / steps`, so that every point of the ball can be reached."""
        step_size = 2.5 * self.epsilon / self.steps
        return pgd_linf(
            model, images, labels, epsilon=self.epsilon, step_size=step_size, steps=self.steps, generator=generator
        )


def to_uint8(moved: torch.Tensor, images: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Perturbed float images as uint8, still within `epsilon` of the originals after rounding.

    Args:
        moved: float, `N x 3 x H x W`, in [0, 1].
        images: uint8, `N x 3 x H x W`, the originals.
        epsilon: as given to `pgd_linf`; its whole levels of 255 are kept.
    """
    import torch

    levels = whole_levels(epsilon)
    original = images.int()
    rounded = torch.clamp((moved * 255).round().int(), original - levels, original + levels)
    return rounded.clamp(0, 255).to(torch.uint8)


def perturb(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
) -> torch.Tensor:
    """`pgd_linf` for stored images: what `apply_plan` takes as `perturbed`.

    Args:
        model: a surrogate in evaluation mode on `device`; maps float images in [0, 1] to logits.
        images: uint8, `M x 3 x H x W`: the images that a plan poisons, in step with `plan.indices`.
        labels: int64, `M`: their labels.
        epsilon, step_size, steps, generator: see `pgd_linf`.
        device: where batches are computed.

    Returns:
        uint8, `M x 3 x H x W`, on the device of `images`, nowhere farther than `epsilon` from them.
    """
    import torch

    perturbed = torch.empty_like(images, memory_format=torch.contiguous_format)
    for start in range(0, len(images), batch_size):
        batch, target = (_on(part[start : start + batch_size], torch.device(device)) for part in (images, labels))
        moved = pgd_linf(
            model, batch.float() / 255, target, epsilon=epsilon, step_size=step_size, steps=steps, generator=generator
        )
        perturbed[start : start + batch_size] = to_uint8(moved, batch, epsilon).to(images.device)
    return perturbed


def _on(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    return part if part.device.type == device.type else to_device(part, device)
