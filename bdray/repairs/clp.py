"""Channel Lipschitzness based pruning: take out the channels that amplify most, without any data."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from bdray.errors import ConditionError
from bdray.registry import Sight
from bdray.repairs.base import REPAIRS, Details
from bdray.repairs.masks import Pruning
from bdray.repairs.tools import CleanData, Tools

if TYPE_CHECKING:
    import torch
    from torch import nn


@REPAIRS.register("clp")
class ChannelLipschitzPruning(Pruning):
    """Prune the channels whose upper bound of the Lipschitz constant lies more than `threshold` standard deviations
    above the mean of their layer. It sees no data and trains nothing.

    A channel is a filter with what batch normalisation makes of it; its bound is the spectral norm of the filter, as a
    matrix of input channels by positions, times |scale| / sqrt(running variance + eps). Scale and shift of a pruned
    channel become 0. BackdoorBench's code leaves eps out, and takes for every normalisation the convolution before it
    in the order of modules; here one that scales a sum (the first of a pre-activation block) has no filter and is left.
    """

    SOURCE: ClassVar[str] = "Zheng, Tang, Li & Liu 2022 (CLP, arXiv 2208.03111)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"weights"})

    threshold: float = Field(default=3.0, ge=0.0)
    """Standard deviations above the mean of the layer (`u` in the paper)."""

    def prune(self, model: nn.Module, clean: CleanData, tools: Tools) -> Details:
        import torch

        gone = []
        black = tools.normalize(clean.images.new_zeros((1, *clean.images.shape[1:])).float())
        with torch.no_grad():
            for convolution, norm in normalised_convolutions(model, black):
                bounds = channel_bounds(convolution, norm)
                gone.append(bounds > bounds.mean() + self.threshold * bounds.std())
                for values in (norm.weight, norm.bias):
                    values.masked_fill_(gone[-1], 0.0)
        if not gone:
            raise ConditionError("repair.name", "clp needs batch normalisation after convolutions; here is none")
        pruned: list[int] = [channel for channel, is_gone in enumerate(torch.cat(gone).tolist()) if is_gone]
        return {"channels": sum(map(len, gone)), "pruned_channels": len(pruned), "pruned": pruned}


def channel_bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> torch.Tensor:
    """The upper bound of each channel's Lipschitz constant: float64, `C`."""
    import torch

    filters = convolution.weight.detach().double().flatten(2)
    assert norm.running_var is not None
    scale = norm.weight.detach().double().abs() / (norm.running_var.double() + norm.eps).sqrt()
    bounds: torch.Tensor = torch.linalg.matrix_norm(filters, ord=2) * scale
    return bounds


def normalised_convolutions(model: nn.Module, image: torch.Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every batch normalisation that scales what a convolution gives, with that convolution, in the order of a forward
    pass. Max pooling between the two changes nothing: the largest of some values moves as far as one of them at most.

    Args:
        image: normalised, `1 x 3 x S x S`.
    """
    import torch
    from torch import nn

    from bdray.models.networks.taps import evaluating

    given: list[tuple[nn.Conv2d, torch.Tensor]] = []
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def sources_of(taken: torch.Tensor) -> list[nn.Conv2d]:
        return [convolution for convolution, output in given if output is taken]

    def after(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        sources = [module] if isinstance(module, nn.Conv2d) else sources_of(args[0])
        given.extend((convolution, output) for convolution in sources)

    def before(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found.extend((convolution, cast(nn.BatchNorm2d, module)) for convolution in sources_of(args[0]))

    with evaluating(model), ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
                hooks.enter_context(module.register_forward_hook(after))
            elif isinstance(module, nn.BatchNorm2d) and module.affine and module.running_var is not None:
                hooks.enter_context(module.register_forward_pre_hook(before))
        model(image)
    return found
