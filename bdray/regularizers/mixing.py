"""Mixing of activations and of labels (Zhang et al. 2018; Verma et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bdray.regularizers.base import Mixing


def mix(tensor: torch.Tensor, permutation: torch.Tensor, lam: float | torch.Tensor) -> torch.Tensor:
    """`lam * tensor + (1 - lam) * tensor[permutation]`.

    Args:
        tensor: floating point, `N x ...`: images, activations or one-hot labels (never class numbers).
        permutation: int64, `N`, on any device.
        lam: weight of a sample itself, in [0, 1].
    """
    return lam * tensor + (1 - lam) * tensor[permutation.to(tensor.device)]


def paste(tensor: torch.Tensor, permutation: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    """`tensor` with what `tensor[permutation]` has in a box (CutMix, Yun et al. 2019).

    Args:
        tensor: images, `N x C x H x W`; left as they are.
        permutation: int64, `N`, on any device.
        box: top, left, bottom, right; the last two are outside.
    """
    top, left, bottom, right = box
    pasted, others = tensor.clone(), permutation.to(tensor.device)
    pasted[:, :, top:bottom, left:right] = tensor[:, :, top:bottom, left:right][others]
    return pasted


def mixed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, mixing: Mixing | None, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The batch's mean cross-entropy with the one-hot labels that `mixing` mixes; plain cross-entropy without.

    Computed in float32, or in float64 where the logits are. Cross-entropy is linear in the label, so this is the
    mixture of two plain ones.

    Args:
        logits: `N x K`.
        labels: int64, `N`, on the device of `logits`.
        mixing: what was mixed in this step.
        label_smoothing: part of each label that is spread evenly over all classes.
    """
    import torch
    from torch.nn.functional import cross_entropy

    wide = logits if logits.dtype == torch.float64 else logits.float()
    own = cross_entropy(wide, labels, label_smoothing=label_smoothing)
    if mixing is None:
        return own
    others = labels[mixing.permutation.to(labels.device)]
    partner = cross_entropy(wide, others, label_smoothing=label_smoothing)
    return mixing.lam * own + (1 - mixing.lam) * partner
