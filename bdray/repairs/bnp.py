"""Pruning by batch normalisation: take out the channels whose running statistics are not those of clean pictures."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from bdray.registry import Sight
from bdray.repairs.base import REPAIRS, Details
from bdray.repairs.masks import Pruning, scaling_norms, silence
from bdray.repairs.tools import CleanData, Tools

if TYPE_CHECKING:
    import torch
    from torch import nn


@REPAIRS.register("bnp")
class NormStatisticsPruning(Pruning):
    """Prune the channels for which the divergence of running statistics, which saw the poison, from those of the clean
    set lies more than `threshold` standard deviations above the mean of their layer. It needs no labels.

    The divergence is that of two normal distributions: KL(clean || running) = log(s / c) + (c^2 + (m - n)^2) / (2 s^2)
    - 1/2, for running mean m and deviation s, clean mean n and deviation c. Clean statistics are those of the whole
    clean set before each normalisation, of the network in evaluation mode. Scale and shift of a pruned channel become
    0. BackdoorBench's code counts the logarithm twice, and takes one augmented batch of the poisoned training set.
    """

    SOURCE: ClassVar[str] = "Zheng, Tang, Li & Liu 2022 (BNP, NeurIPS 2022: Pre-activation distributions)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"clean share", "weights"})

    threshold: float = Field(default=3.0, ge=0.0)
    """Standard deviations above the mean of the layer (`u` in the paper)."""

    def prune(self, model: nn.Module, clean: CleanData, tools: Tools) -> Details:
        import torch

        norms = scaling_norms(model, "bnp")
        gone = []
        for norm, (mean, variance) in zip(norms.values(), clean_statistics(model, norms, clean), strict=True):
            apart = divergence(norm, mean, variance)
            gone.append(apart > apart.mean() + self.threshold * apart.std())
        pruned = silence(norms, torch.cat(gone), shift=True)
        return {"channels": sum(map(len, gone)), "pruned_channels": len(pruned), "pruned": pruned}


def divergence(norm: nn.BatchNorm2d, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """KL(clean || running) of each channel, float64, `C`. `mean`, `variance`: clean, float64, `C`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    running, spread = norm.running_mean.double(), norm.running_var.double().clamp(min=1e-12)
    variance = variance.clamp(min=1e-12)
    apart: torch.Tensor = (variance + (mean - running).square()) / (2 * spread)
    return 0.5 * (spread / variance).log() + apart - 0.5


def clean_statistics(
    model: nn.Module, norms: dict[str, nn.BatchNorm2d], clean: CleanData
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and unbiased variance of what each normalisation is given, over the clean set: float64, `C`."""
    import torch

    sums: dict[nn.Module, list[torch.Tensor]] = {norm: [] for norm in norms.values()}

    def before(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        values = args[0].transpose(0, 1).flatten(1).double()
        # Around the running mean, so that no digits are lost where it is far from 0.
        around = values - cast("torch.Tensor", module.running_mean).double()[:, None]
        now = torch.stack([around.sum(1), around.square().sum(1), torch.full_like(around[:, 0], values.shape[1])])
        sums[module].append(now)

    with ExitStack() as hooks:
        for norm in norms.values():
            hooks.enter_context(norm.register_forward_pre_hook(before))
        clean.outputs(model)
    found = []
    for norm in norms.values():
        first, second, count = torch.stack(sums[norm]).sum(0)
        assert norm.running_mean is not None
        variance = (second - first.square() / count) / (count - 1)
        found.append((norm.running_mean.double() + first / count, variance))
    return found
