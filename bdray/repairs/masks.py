"""What repairs that switch channels off have in common: mostly, the scale of batch normalisation is what does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from bdray.errors import ConditionError
from bdray.recipes import Finetune
from bdray.repairs.base import Details, Operation, Repair, RepairStage
from bdray.repairs.tools import CleanData, Tools

if TYPE_CHECKING:
    import torch
    from torch import nn


class Pruning(Repair):
    """A repair that switches channels off at once, and trains nothing afterwards."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        return (Operation("prune", "pruned", self.identity(), operate=self.prune),)

    def uses_clean_data(self, finetune: Finetune) -> bool:
        return "clean share" in self.SEES

    def prune(self, model: nn.Module, clean: CleanData, tools: Tools) -> Details:
        """Does it, in place; says which channels."""
        raise NotImplementedError


def scaling_norms(model: nn.Module, repair: str) -> dict[str, nn.BatchNorm2d]:
    """Every batch normalisation with scale, shift and running statistics, by its path.

    Raises:
        ConditionError: there is none; `repair` cannot work.
    """
    from torch import nn

    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.running_var is not None
    }
    if not found:
        raise ConditionError("repair.name", f"{repair} needs batch normalisation; here is none")
    return found


def channels_of(norms: dict[str, nn.BatchNorm2d]) -> list[int]:
    """How many channels each has."""
    return [norm.num_features for norm in norms.values()]


def masked_loss(
    model: nn.Module,
    norms: dict[str, nn.BatchNorm2d],
    batch: tuple[torch.Tensor, torch.Tensor],
    scale: torch.Tensor,
    shift: torch.Tensor | None = None,
    *,
    tools: Tools,
) -> torch.Tensor:
    """Mean cross-entropy, a float32 number, where the scale of every channel is multiplied by `scale`, its shift by
    `shift`.

    Args:
        batch: pictures, normalised, `N x 3 x S x S`, and labels, int64, `N`.
        scale, shift: float32, one value a channel of all `norms`, in their order.
    """
    from torch.func import functional_call
    from torch.nn.functional import cross_entropy

    pixels, labels = batch
    changed = {}
    for name, factors in (("weight", scale), ("bias", shift)):
        if factors is not None:
            for (path, norm), part in zip(norms.items(), factors.split(channels_of(norms)), strict=True):
                changed[f"{path}.{name}"] = getattr(norm, name).detach() * part
    with tools.autocast():
        logits: torch.Tensor = functional_call(model, changed, (pixels,))
    return cross_entropy(logits.float(), labels)


def silence(norms: dict[str, nn.BatchNorm2d], gone: torch.Tensor, *, shift: bool) -> list[int]:
    """Sets the scale of channels to 0, with `shift` their shift too.

    Args:
        gone: bool, one value a channel of all `norms`.

    Returns:
        Their positions among all channels.
    """
    import torch

    with torch.no_grad():
        for norm, part in zip(norms.values(), gone.split(channels_of(norms)), strict=True):
            norm.weight.masked_fill_(part, 0.0)
            if shift:
                norm.bias.masked_fill_(part, 0.0)
    return [channel for channel, is_gone in enumerate(cast("list[bool]", gone.tolist())) if is_gone]


def endless_batches(tools: Tools, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of the clean set after the other (`Tools.batches`)."""
    while True:
        yield from tools.batches(batch_size)
