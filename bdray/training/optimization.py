"""Optimizer, learning-rate schedule, and which parameters a stage trains."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from bdray.errors import ConditionError
from bdray.models.networks.taps import Taps
from bdray.recipes import Optimization

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    recipe: Optimization,
    lr: float,
    device: torch.device,
    undecayed: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW, fused into one kernel per step.

    Args:
        parameters: the network's, which `recipe.weight_decay` pulls towards zero.
        undecayed: a regularizer's own: zero means nothing to a temperature, so only their gradient moves them.
    """
    fused = device.type in ("cpu", "cuda")
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if own := list(undecayed):
        groups.append({"params": own, "weight_decay": 0.0})
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=recipe.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def lr_factor(schedule: Literal["one_cycle", "cosine", "constant"], step: int, steps: int) -> float:
    """Learning rate of `step` (0-based, of `steps`) as a fraction of the peak.

    `one_cycle` is Smith & Topin 2018 as torch's `OneCycleLR` anneals it: cosine from 1/25 up over the first 30 %,
    then down to 1/250,000. A pure function of the step, so a resumed stage needs no scheduler state.
    """
    if schedule == "constant" or steps <= 1:
        return 1.0
    if schedule == "cosine":
        return _cosine(1.0, 0.0, step / steps)
    top = 0.3 * steps - 1
    if step <= top:
        return _cosine(1 / 25, 1.0, step / top)
    return _cosine(1.0, 1 / 250_000, (step - top) / (steps - 1 - top))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def select_layers(model: nn.Module, layers: Literal["all", "head", "batch_norm"]) -> list[nn.Parameter]:
    """Freeze every parameter but the chosen ones and return those.

    `head` is the final linear layer; `batch_norm` the scale and shift of every normalisation layer.

    Raises:
        ConditionError: the network has no such layers.
    """
    taps: Taps = model.taps  # type: ignore[assignment]
    if layers == "all":
        chosen = list(model.parameters())
    elif layers == "head":
        chosen = list(model.get_submodule(taps.head).parameters())
    else:
        chosen = [
            p for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)
        ]
    if not chosen:
        raise ConditionError("finetune.layers", f"this network has no parameters in '{layers}' layers; use all or head")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen
