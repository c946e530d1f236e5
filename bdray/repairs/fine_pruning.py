"""Fine-pruning: take out what clean data does not use, then fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from bdray.errors import ConditionError
from bdray.recipes import Finetune
from bdray.repairs.base import REPAIRS, Details, Operation, Repair, RepairStage, Training
from bdray.repairs.tools import CleanData, Tools

if TYPE_CHECKING:
    import torch
    from torch import nn


@REPAIRS.register("fine_pruning")
class FinePruning(Repair):
    """Prune the channels of the last feature map that are dormant on clean data, most dormant first, until clean
    accuracy on the clean set would fall by more than `max_drop`; then fine-tune as `finetune` says.

    A channel's activity is the mean over the clean images of the absolute value of what global pooling hands to the
    head. After a ReLU that is its mean over all positions of the map, as in the paper; without one a strongly negative
    channel is active too. The head sees each channel through one weight a class, so a channel is pruned by a mask on
    that column of the head (`torch.nn.utils.prune`); it stays pruned while the model is fine-tuned.
    """

    SOURCE: ClassVar[str] = "Liu, Dolan-Gavitt & Garg 2018 (fine-pruning); the size of the drop is our choice"
    VERSION: ClassVar[int] = 2  # in the first, channels were ranked by their mean, so strongly negative ones went first

    max_drop: float = Field(default=0.04, ge=0.0, lt=1.0)
    """How much clean accuracy on the clean set pruning may cost, as a fraction of its images."""

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        prune = Operation("prune", "pruned", self.identity(), operate=self._prune, prepare=make_prunable)
        return (prune, Training(finetune))

    def uses_clean_data(self, finetune: Finetune) -> bool:
        return True

    def _prune(self, model: nn.Module, clean: CleanData, tools: Tools) -> Details:
        from bdray.models.networks.taps import head_of

        head = head_of(model)
        features = clean.outputs(model).features
        weight, mask = (cast("torch.Tensor", getattr(head, name)) for name in ("weight_orig", "weight_mask"))
        bias = cast("torch.Tensor | None", head.bias)
        order, correct = pruning_curve(features, clean.labels, weight.detach(), bias if bias is None else bias.detach())
        counts: list[int] = correct.tolist()
        enough = counts[0] - self.max_drop * len(clean.labels)
        pruned = next((n for n, count in enumerate(counts) if count < enough), len(counts)) - 1
        # Without any channel the model would say one class, whatever it sees.
        gone = order[: min(pruned, len(order) - 1)]
        mask.index_fill_(1, gone, 0.0)
        return {
            "channels": len(order),
            "pruned_channels": len(gone),
            "clean_set_accuracy_before": counts[0] / len(clean.labels),
            "clean_set_accuracy_after": counts[len(gone)] / len(clean.labels),
            "pruned": gone.tolist(),
        }


def pruning_curve(
    features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """In which order channels are pruned, and how many images are right after each.

    Args:
        features: penultimate features (globally pooled channels), float, `N x D`.
        labels: int64, `N`.
        weight, bias: of the linear head, `K x D` and `K` (None where it has none).

    Returns:
        The channels by ascending mean absolute value, int64, `D`; correctly classified images with the first 0, 1, ...,
        `D` of them pruned, int64, `D + 1`. Both on the device of `features`.
    """
    import torch

    # In float64: thousands of channels are taken away one after the other.
    features, weight = features.double(), weight.double()
    order = features.abs().mean(0).argsort(stable=True)
    logits = features @ weight.T
    if bias is not None:
        logits += bias.double()
    correct = [(logits.argmax(1) == labels).sum()]
    for channel in range(len(order)):
        which = order[channel : channel + 1]
        logits -= features.index_select(1, which) * weight.index_select(1, which).T
        correct.append((logits.argmax(1) == labels).sum())
    return order, torch.stack(correct)


def make_prunable(model: nn.Module) -> None:
    """Give the head a mask over its weights that prunes nothing yet.

    Raises:
        ConditionError: the network has no linear head.
    """
    from torch import nn
    from torch.nn.utils import prune

    from bdray.models.networks.taps import head_of

    head = head_of(model)
    if not isinstance(head, nn.Linear):
        raise ConditionError("repair.name", f"fine_pruning needs a linear head, but this one is {head}")
    if not prune.is_pruned(head):
        prune.identity(head, "weight")
        head.register_load_state_dict_post_hook(_masked_anew)
        _masked_anew(head)


def _masked_anew(head: nn.Module, _keys: object = None) -> None:
    """The weights that a mask leaves, without a gradient's history. Torch makes them at a forward pass; until then they
    are those of before, and a model cannot be copied."""
    import torch

    with torch.no_grad():
        head.weight = head.get_parameter("weight_orig") * head.get_buffer("weight_mask")
