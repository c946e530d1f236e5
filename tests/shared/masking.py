"""Masks over channels, written out: every normalisation computed from its definition."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn


def masked_network(model: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A float64 copy that normalises by the statistics of the batch, with a factor for each channel's scale and one for
    its shift (float64, all 1): the copy, and both."""
    other = copy.deepcopy(model).double().train()
    norms = [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
    count = sum(norm.num_features for norm in norms)
    scale, shift = (torch.ones(count, dtype=torch.float64, requires_grad=True) for _ in range(2))
    at = 0
    for norm in norms:
        norm.forward = partial(_normalised, norm, slice(at, at + norm.num_features), scale, shift)  # type: ignore[method-assign]
        at += norm.num_features
    return other, scale, shift


def _normalised(
    norm: nn.BatchNorm2d, part: slice, scale: torch.Tensor, shift: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    mean = images.mean((0, 2, 3), keepdim=True)
    spread = (images - mean).square().mean((0, 2, 3), keepdim=True)
    weight, bias = norm.weight * scale[part], norm.bias * shift[part]
    return (images - mean) / (spread + norm.eps).sqrt() * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
