"""One small perturbation of all pictures that a clean model takes for the target class (Narcissus, Zeng et al. 2023,
arXiv 2204.05255, algorithm 1): a trigger for clean labels, added to few pictures of that class and, amplified, at test
time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdray.gpu import to_device

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def universal_noise(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    target: int,
    *,
    epsilon: float,
    epochs: int,
    lr: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    batch_size: int = 350,
    tick: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> torch.Tensor:
    """The perturbation within `epsilon` that lowers the cross-entropy of `target` most, over all images at once.

    As in the authors' code: RAdam on one array that begins at zero; what exceeds the ball is cut off where it is added,
    and so are pixels outside their range. There the model learns public pictures of other classes first and those of
    the target for 5 epochs, and images are cropped and flipped; here the caller brings a model, and images are as
    they are.

    Args:
        model: in evaluation mode on `device`, its weights at rest; maps float images in [0, 1] to logits `N x K`.
        images: uint8, `N x 3 x H x W`: those of the target class.
        epsilon: radius of the l-infinity ball, as a fraction of the range.
        epochs: passes over the images.
        lr: of RAdam, as a fraction of the range.
        generator: shuffles the images before every pass; on the CPU.
        tick: hears after every pass how many are done, of how many, and the mean loss.

    Returns:
        float32, `3 x H x W`, on the CPU, a fraction of the range.
    """
    import torch
    from torch.nn import functional

    free = torch.zeros(images.shape[1:], device=device, requires_grad=True)
    optimizer = torch.optim.RAdam([free], lr=lr)
    for epoch in range(1, epochs + 1):
        losses = []
        for order in torch.randperm(len(images), generator=generator).split(batch_size):
            pixels = to_device(images[order], torch.device(device)).float() / 255
            logits = model((pixels + free.clamp(-epsilon, epsilon)).clamp(0, 1)).float()
            loss = functional.cross_entropy(logits, torch.full((len(order),), target, device=device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        tick(epoch, epochs, float(torch.stack(losses).mean()))
    return free.detach().clamp(-epsilon, epsilon).cpu()
