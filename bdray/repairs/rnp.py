"""Reconstructive neuron pruning: unlearn clean pictures, then see which channels are not needed to learn them again."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.repairs.base import REPAIRS, Details
from bdray.repairs.masks import Pruning, channels_of, masked_loss, scaling_norms, silence
from bdray.repairs.tools import CleanData, Tools

if TYPE_CHECKING:
    import torch
    from torch import nn


@REPAIRS.register("rnp")
class ReconstructiveNeuronPruning(Pruning):
    """Raise the cross-entropy of clean pictures until the network gets few right (equation 1 of the paper); of that
    network learn a mask of channels, m in [0, 1], that makes alpha times the cross-entropy of the same pictures small
    (equation 2); then prune in the model the channels whose mask ends at `threshold` or below.

    The mask multiplies the scale of batch normalisation, whose statistics are the batch's; the scale of a pruned
    channel becomes 0. Gradients of unlearning are clipped to a length of 20, which the authors' code means to do and
    does before there are any.
    """

    SOURCE: ClassVar[str] = "Li, Lyu, Ma, Koren, Lyu, Li & Jiang 2023 (RNP, arXiv 2305.14876)"

    threshold: float = Field(default=0.7, ge=0.0, le=1.0)
    """A channel with a mask of at most this is pruned."""
    clean_threshold: float = Field(default=0.2, ge=0.0, le=1.0)
    """Unlearning ends when no more than this part of an epoch's pictures is right."""
    unlearning_lr: float = Field(default=0.01, gt=0.0)
    """Of unlearning: plain ascent with a momentum of 0.9 and a weight decay of 5e-4."""
    unlearning_epochs: int = Field(default=20, ge=1)
    """At most."""
    recovering_lr: float = Field(default=0.2, gt=0.0)
    """Of the mask: plain descent with a momentum of 0.9."""
    recovering_epochs: int = Field(default=20, ge=1)
    """Passes over the clean set that the mask learns."""
    alpha: float = Field(default=0.2, gt=0.0)
    """Factor of the loss that the mask makes small."""
    batch_size: int = Field(default=128, ge=2)
    """Pictures a step."""

    def prune(self, model: nn.Module, clean: CleanData, tools: Tools) -> Details:
        norms = scaling_norms(model, "rnp")
        worker = copy.deepcopy(model).train()
        epochs, right = self.unlearn(worker, tools)
        mask = self.recover(worker, tools)
        pruned = silence(norms, mask <= self.threshold, shift=False)
        counts: Details = {"channels": len(mask), "pruned_channels": len(pruned), "pruned": pruned}
        return {**counts, "unlearning_epochs": epochs, "clean_set_accuracy_unlearnt": right}

    def unlearn(self, model: nn.Module, tools: Tools) -> tuple[int, float]:
        """Make the model, in training mode, forget clean pictures.

        Returns:
            How many epochs that took, and what part of the last one's pictures was right.
        """
        import torch
        from torch.nn.functional import cross_entropy

        weights = list(model.parameters())
        optimizer = torch.optim.SGD(weights, lr=self.unlearning_lr, momentum=0.9, weight_decay=5e-4)
        share, done = 1.0, 0
        for epoch in tools.steps(self.unlearning_epochs):
            right = []
            for pixels, labels in tools.batches(self.batch_size):
                with tools.autocast():
                    logits = model(pixels).float()
                optimizer.zero_grad()
                (-cross_entropy(logits, labels)).backward()
                torch.nn.utils.clip_grad_norm_(weights, 20.0)
                optimizer.step()
                right.append(logits.detach().argmax(1) == labels)
            (share,) = torch.cat(right).float().mean(0, keepdim=True).tolist()
            done = epoch + 1
            if share <= self.clean_threshold:
                break
        return done, share

    def recover(self, model: nn.Module, tools: Tools) -> torch.Tensor:
        """The mask under which the model, in training mode, does best: float32, one value a channel."""
        import torch

        norms = scaling_norms(model, "rnp")
        mask = torch.ones(sum(channels_of(norms)), device=tools.clean.images.device, requires_grad=True)
        optimizer = torch.optim.SGD([mask], lr=self.recovering_lr, momentum=0.9)
        for _ in tools.steps(self.recovering_epochs):
            for batch in tools.batches(self.batch_size):
                loss = self.alpha * masked_loss(model, norms, batch, mask, tools=tools)
                (mask.grad,) = torch.autograd.grad(loss, mask)
                optimizer.step()
                with torch.no_grad():
                    mask.clamp_(0, 1)
        return mask.detach()
