"""A sharpness-aware step against the formula of adaptive SAM, by autograd in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from retraining import network, normalized, pictures, stage_of
from torch import nn

from bdray.repairs import Objective
from bdray.repairs.ft_sam import SharpnessAware
from bdray.training.loop import run_stage


@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_a_step_is_that_of_the_formula(rho: float) -> None:
    model = network()
    other = copy.deepcopy(model).double().train()
    stage = stage_of(SharpnessAware(rho))
    state = run_stage(stage, stage.start(model))

    images, labels = pictures()
    pixels = normalized(images).double()
    weights = dict(other.named_parameters())

    def gradients() -> dict[str, torch.Tensor]:
        loss = nn.functional.cross_entropy(other(pixels), labels)
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    came = {name: value.detach().clone() for name, value in weights.items()}
    first = gradients()
    length = sum(((came[name] * first[name]) ** 2).sum() for name in came) ** 0.5
    with torch.no_grad():
        for name, value in weights.items():
            value.add_(rho * came[name] ** 2 * first[name] / length)
    second = gradients()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.double(), came[name] - 0.1 * second[name], atol=2e-4, rtol=2e-3)
    assert state.history[0].images == len(labels)


def test_running_statistics_follow_one_pass() -> None:
    plain, sharp = network(), network()
    for model, objective in ((plain, Objective()), (sharp, SharpnessAware(2.0))):
        stage = stage_of(objective)
        run_stage(stage, stage.start(model))
    buffers = dict(sharp.named_buffers())
    assert len(buffers) > 10
    for name, value in plain.named_buffers():
        assert torch.equal(value, buffers[name]), name
