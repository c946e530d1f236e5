"""Feature shift tuning against its formula, by autograd in float64."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from retraining import network, normalized, pictures, stage_of
from torch import nn

from bdray.recipes import Finetune
from bdray.repairs.base import Training
from bdray.repairs.fst import FeatureShift, FeatureShiftTuning
from bdray.training.loop import run_stage


def test_no_epoch_leaves_the_model_as_it_is() -> None:
    """Found: the record had the rates of the poisoned model; its floors, its validation and its file those of a head
    that was drawn anew."""
    model, stage = network(), stage_of(FeatureShift(0.2), epochs=0)
    before = copy.deepcopy(model.state_dict())
    run_stage(stage, stage.start(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_all_layers_are_tuned_whatever_fine_tuning_does() -> None:
    (stage,) = FeatureShiftTuning().stages(Finetune(layers="head"))
    assert isinstance(stage, Training)
    assert isinstance(stage.recipe, Finetune)
    assert stage.recipe.layers == "all"


@pytest.mark.parametrize("alpha", [0.0, 0.2, 2.0])
def test_a_step_is_that_of_the_formula(alpha: float) -> None:
    poisoned = network()
    stage = stage_of(FeatureShift(alpha))
    model = copy.deepcopy(poisoned)
    state = stage.start(model)
    begun = copy.deepcopy(model).double()
    run_stage(stage, state)

    # One step by hand, from where it began.
    head, old = begun.get_submodule("fc"), poisoned.get_parameter("fc.weight").detach().double()
    assert isinstance(head, nn.Linear)
    images, labels = pictures()
    begun.train()
    inner = (head.weight * old).sum()
    loss = nn.functional.cross_entropy(begun(normalized(images).double()), labels) + alpha * inner
    loss.backward()
    with torch.no_grad():
        for value in begun.parameters():
            assert value.grad is not None
            value.sub_(0.1 * value.grad)
        head.weight *= old.norm() / head.weight.norm()
    assert state.history[0].loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, value), expected in zip(model.named_parameters(), begun.parameters(), strict=True):
        torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-4, msg=partial("{}: {}".format, name))


def test_the_head_is_drawn_anew_from_the_stream_and_nothing_else_is() -> None:
    poisoned, models = network(), []
    for seed in (0, 0, 1):
        model = copy.deepcopy(poisoned)
        state = FeatureShift(0.2).begin(model, model, torch.Generator().manual_seed(seed))
        assert torch.equal(state.get_buffer("poisoned"), poisoned.get_parameter("fc.weight"))
        models.append(model.state_dict())
    changed = {name for name, value in poisoned.state_dict().items() if not torch.equal(value, models[0][name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert torch.equal(models[0]["fc.weight"], models[1]["fc.weight"])
    assert not torch.equal(models[0]["fc.weight"], models[2]["fc.weight"])
    assert models[0]["fc.weight"].abs().max() <= models[0]["fc.weight"].shape[1] ** -0.5
