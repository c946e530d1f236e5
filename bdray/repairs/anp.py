"""Adversarial neuron pruning: take out the channels that a small change of themselves makes err."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.gpu import to_device
from bdray.repairs.base import REPAIRS, Details
from bdray.repairs.masks import Pruning, channels_of, endless_batches, masked_loss, scaling_norms, silence
from bdray.repairs.tools import CleanData, Tools

if TYPE_CHECKING:
    import torch
    from torch import nn


@REPAIRS.register("anp")
class AdversarialNeuronPruning(Pruning):
    """Learn a mask of channels, m in [0, 1], that makes alpha L(m, 0, 0) + (1 - alpha) L(m, d, e) small (equations 3
    and 4 of the paper), where d and e are what makes L largest within epsilon; then prune the channels whose mask ends
    at `threshold` or below.

    L(m, d, e) is cross-entropy on clean pictures with the scale of batch normalisation times m + d and its shift times
    1 + e, by the statistics of the batch. Both begin anywhere within epsilon in every step, and move by epsilon along
    the sign of the gradient (as in the authors' code, without a projection). The scale of a pruned channel becomes 0.
    """

    SOURCE: ClassVar[str] = "Wu & Wang 2021 (ANP, arXiv 2110.14430)"

    threshold: float = Field(default=0.2, ge=0.0, le=1.0)
    """A channel with a mask of at most this is pruned."""
    epsilon: float = Field(default=0.4, ge=0.0)
    """How far scale and shift are moved, in parts of themselves."""
    alpha: float = Field(default=0.2, ge=0.0, le=1.0)
    """Weight of the loss without a change."""
    steps: int = Field(default=2000, ge=1)
    """Of the mask."""
    ascents: int = Field(default=1, ge=1)
    """Steps of the change for each of the mask, of epsilon / `ascents`."""
    lr: float = Field(default=0.2, gt=0.0)
    """Of the mask: plain descent with a momentum of 0.9."""
    batch_size: int = Field(default=128, ge=2)
    """Pictures a step."""

    def prune(self, model: nn.Module, clean: CleanData, tools: Tools) -> Details:
        norms = scaling_norms(model, "anp")
        mask = self.mask(model, tools)
        pruned = silence(norms, mask <= self.threshold, shift=False)
        return {"channels": len(mask), "pruned_channels": len(pruned), "pruned": pruned}

    def mask(self, model: nn.Module, tools: Tools) -> torch.Tensor:
        """The mask that is learnt: float32, one value a channel of all normalisations. The model is left as it is."""
        import torch

        # Running statistics follow the steps, and are no part of what is learnt.
        worker = copy.deepcopy(model).train()
        norms = scaling_norms(worker, "anp")
        count = sum(channels_of(norms))
        mask = torch.ones(count, device=tools.clean.images.device, requires_grad=True)
        optimizer = torch.optim.SGD([mask], lr=self.lr, momentum=0.9)
        batches = endless_batches(tools, self.batch_size)
        for _ in tools.steps(self.steps):
            loss = partial(masked_loss, worker, norms, next(batches), tools=tools)
            drawn = torch.empty(2, count).uniform_(-self.epsilon, self.epsilon, generator=tools.generator)
            moved = to_device(drawn, mask.device)
            for _ in range(self.ascents):
                moved.requires_grad_()
                (uphill,) = torch.autograd.grad(loss(mask.detach() + moved[0], 1 + moved[1]), moved)
                moved = moved.detach() + self.epsilon / self.ascents * uphill.sign()
            blend = self.alpha * loss(mask) + (1 - self.alpha) * loss(mask + moved[0], 1 + moved[1])
            (mask.grad,) = torch.autograd.grad(blend, mask)
            optimizer.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
        return mask.detach()
