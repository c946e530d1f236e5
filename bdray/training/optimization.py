"""Optimizer, learning-rate schedule, and which parameters a stage trains."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, Literal

import torch
from torch import nn

from bdray.errors import ConditionError
from bdray.models.networks.taps import taps_of
from bdray.recipes import Optimization, Schedule

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


LR_FACTOR = "lr_factor"
"""Of a group of parameters: what its learning rate is multiplied by, where that is not 1."""


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    recipe: Optimization,
    lr: float,
    undecayed: Iterable[nn.Parameter] = (),
    *,
    norm_biases: Collection[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW, fused into one kernel per step.

    Args:
        parameters: the network's, which `recipe.weight_decay` pulls towards zero.
        undecayed: a regularizer's own: zero means nothing to a temperature, so only their gradient moves them.
        norm_biases: those of the network's parameters for which `recipe.norm_bias_lr` holds.
    """
    factor = recipe.norm_bias_lr
    apart = set() if factor == 1.0 else set(map(id, norm_biases))
    network = list(parameters)
    groups: list[dict[str, Any]] = [{"params": [p for p in network if id(p) not in apart]}]
    if faster := [p for p in network if id(p) in apart]:
        decay = recipe.weight_decay / factor
        groups.append({"params": faster, "lr": lr * factor, "weight_decay": decay, LR_FACTOR: factor})
    if own := list(undecayed):
        groups.append({"params": own, "weight_decay": 0.0})
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        groups,
        lr=lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next step; groups with a factor of their own get theirs."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(LR_FACTOR, 1.0)


def lr_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Learning rate of `step` (0-based, of `steps`) as a fraction of the peak.

    `one_cycle` is Smith & Topin 2018 as torch's `OneCycleLR` anneals it: cosine from 1/25 up over the first 30 %,
    then down to 1/250,000. `triangular`: Jordan 2024. A pure function of the step: a resumed stage needs no scheduler
    state.
    """
    if schedule == "constant" or steps <= 1:
        return 1.0
    if schedule == "cosine":
        return _cosine(1.0, 0.0, step / steps)
    if schedule == "triangular":
        return _between_corners(step / steps)
    top = 0.3 * steps - 1
    if step <= top:
        return _cosine(1 / 25, 1.0, step / top)
    return _cosine(1.0, 1 / 250_000, (step - top) / (steps - 1 - top))


def _between_corners(progress: float) -> float:
    start, peak, end = 0.2, 0.23, 0.07
    if progress <= peak:
        return start + (1 - start) * progress / peak
    return 1 - (1 - end) * (progress - peak) / (1 - peak)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def norm_biases_of(model: nn.Module) -> list[nn.Parameter]:
    """The shifts of all normalisation layers."""
    found = [module.bias for module in model.modules() if isinstance(module, NORMS)]
    return [bias for bias in found if bias is not None]


def select_layers(
    model: nn.Module, layers: Literal["all", "head", "batch_norm"], given: Iterable[nn.Parameter] | None = None
) -> list[nn.Parameter]:
    """Freeze every parameter but the chosen ones and return those.

    `head` is the final linear layer; `batch_norm` the scale and shift of every normalisation layer; `given` are chosen
    whatever `layers` says.

    Raises:
        ConditionError: the network has no such layers.
    """
    taps = taps_of(model)
    if given is not None:
        chosen = list(given)
    elif layers == "all":
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
