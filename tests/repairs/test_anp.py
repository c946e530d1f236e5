"""Adversarial neuron pruning against its formulas, every normalisation written out, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from masking import masked_network
from repairing import prepared, tools_of
from torch import nn

from bdray.errors import ConditionError
from bdray.recipes import Finetune
from bdray.repairs import REPAIRS, Operation
from bdray.repairs.anp import AdversarialNeuronPruning


def looking_trained() -> nn.Module:
    model, _ = prepared("resnet8", images=4)
    drawn = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=drawn)
            module.bias.data.normal_(generator=drawn)
    return model


def by_hand(
    model: nn.Module, repair: AdversarialNeuronPruning, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The mask after `repair.steps` steps, each of them on all pictures."""
    other, scale, shift = masked_network(model)
    drawn = torch.Generator().manual_seed(0)
    mask, velocity = torch.ones_like(scale), torch.zeros_like(scale)

    def gradients(scales: torch.Tensor, shifts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            scale.copy_(scales)
            shift.copy_(shifts)
        of_scale, of_shift = torch.autograd.grad(nn.functional.cross_entropy(other(images), labels), (scale, shift))
        return of_scale, of_shift

    for _ in range(repair.steps):
        torch.randperm(len(images), generator=drawn)
        change = (torch.empty(2, len(mask)).uniform_(-repair.epsilon, repair.epsilon, generator=drawn)).double()
        for _ in range(repair.ascents):
            change = (
                change
                + repair.epsilon / repair.ascents * torch.stack(gradients(mask + change[0], 1 + change[1])).sign()
            )
        plain, _ = gradients(mask, torch.ones_like(mask))
        worst, _ = gradients(mask + change[0], 1 + change[1])
        velocity = 0.9 * velocity + repair.alpha * plain + (1 - repair.alpha) * worst
        mask = (mask - repair.lr * velocity).clamp(0, 1)
    return mask


@pytest.mark.parametrize("ascents", [1, 2])
def test_the_mask_is_that_of_the_formulas(ascents: int) -> None:
    _, clean = prepared("resnet8", images=16)
    model = looking_trained()
    before = copy.deepcopy(model.state_dict())
    repair = AdversarialNeuronPruning(steps=3, ascents=ascents, lr=0.5, batch_size=16)
    found = repair.mask(model, tools_of(clean))
    pixels = clean.normalize(clean.images.float() / 255).double()
    expected = by_hand(model, repair, pixels, clean.labels)
    assert float((expected < 0.99).double().mean()) > 0.1
    # A gradient near 0 may have another sign in float32: single channels are then moved the other way.
    assert float(((found.double() - expected).abs() < 2e-3).double().mean()) > 0.97
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_channels_are_pruned_by_their_scale_alone() -> None:
    _, clean = prepared("resnet8", images=16)
    model = looking_trained()
    repair = AdversarialNeuronPruning(steps=4, lr=0.5, threshold=0.9, batch_size=16)
    mask = repair.mask(model, tools_of(clean))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    weights, shifts = (
        torch.cat([getattr(norm, name).detach().clone() for norm in norms]) for name in ("weight", "bias")
    )
    (stage,) = repair.stages(Finetune())
    assert isinstance(stage, Operation)
    details = stage.operate(model, clean, tools_of(clean))
    gone = mask <= 0.9
    assert 0 < int(gone.sum()) < len(mask)
    assert details == {
        "channels": len(mask), "pruned_channels": int(gone.sum()), "pruned": gone.nonzero().flatten().tolist()
    }  # fmt: skip
    assert torch.equal(torch.cat([norm.weight.detach() for norm in norms]), weights.masked_fill(gone, 0.0))
    assert torch.equal(torch.cat([norm.bias.detach() for norm in norms]), shifts)


def test_a_network_without_normalisation_is_refused() -> None:
    _, clean = prepared("resnet8", images=4)
    (stage,) = REPAIRS.build("anp").stages(Finetune())
    assert isinstance(stage, Operation)
    with pytest.raises(ConditionError, match="anp needs batch normalisation"):
        stage.operate(nn.Sequential(nn.Conv2d(3, 4, 3)), clean, tools_of(clean))
