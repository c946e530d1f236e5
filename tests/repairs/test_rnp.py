"""Reconstructive neuron pruning against its formulas in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from masking import masked_network
from repairing import prepared, tools_of
from torch import nn

from bdray.repairs.rnp import ReconstructiveNeuronPruning


def test_a_step_of_unlearning_is_that_of_the_formula() -> None:
    model, clean = prepared("resnet8", images=12)
    other = copy.deepcopy(model).double().train()
    done, _ = ReconstructiveNeuronPruning(unlearning_epochs=1, batch_size=16).unlearn(model.train(), tools_of(clean))
    assert done == 1
    loss = nn.functional.cross_entropy(other(clean.normalize(clean.images.float() / 255).double()), clean.labels)
    gradients = torch.autograd.grad(loss, list(other.parameters()))
    length = sum(gradient.square().sum() for gradient in gradients) ** 0.5
    assert length < 20
    for (name, value), before, gradient in zip(model.named_parameters(), other.parameters(), gradients, strict=True):
        expected = before - 0.01 * (5e-4 * before - gradient)
        torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-3, msg=name)


def test_unlearning_ends_when_little_is_right() -> None:
    model, clean = prepared("resnet8", images=32)
    repair = ReconstructiveNeuronPruning(unlearning_epochs=30, unlearning_lr=0.2, batch_size=32, clean_threshold=0.3)
    done, right = repair.unlearn(model.train(), tools_of(clean))
    assert done < 30
    assert right <= 0.3


def test_the_mask_that_recovers_is_that_of_the_formula() -> None:
    model, clean = prepared("resnet8", images=12)
    repair = ReconstructiveNeuronPruning(recovering_epochs=3, recovering_lr=2.0, batch_size=16)
    other, scale, _ = masked_network(model)
    found = repair.recover(model.train(), tools_of(clean))
    pixels, velocity = clean.normalize(clean.images.float() / 255).double(), torch.zeros_like(scale)
    for _ in range(3):
        loss = 0.2 * nn.functional.cross_entropy(other(pixels), clean.labels)
        velocity = 0.9 * velocity + torch.autograd.grad(loss, scale)[0]
        with torch.no_grad():
            scale.copy_((scale - 2.0 * velocity).clamp(0, 1))
    assert float(scale.detach().min()) < 0.95
    assert found.double().numpy() == pytest.approx(scale.detach().numpy(), abs=1e-3)
