"""Unlearning of reversed triggers: what is stamped, with what label, and when the model is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from repairing import prepared, tools_of

from bdray.detectors.neural_cleanse import NeuralCleanse
from bdray.errors import ComponentError
from bdray.recipes import Finetune
from bdray.repairs import REPAIRS, Operation
from bdray.repairs.neural_cleanse import NeuralCleanseUnlearning


def test_a_step_is_that_of_the_formula() -> None:
    model, clean = prepared("resnet8", images=10)
    repair = NeuralCleanseUnlearning(stamped=0.5, batch_size=16)
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., :3, :3] = 0.75
    patterns = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    other = copy.deepcopy(model).double().train()
    repair._tune(model.train(), masks, patterns, tools_of(clean))

    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    pixels = clean.images[order].double() / 255
    pixels[:5] += masks * (patterns - pixels[:5])
    normal = (pixels - clean.normalize.mean) / clean.normalize.std
    loss = torch.nn.functional.cross_entropy(other(normal), clean.labels[order])
    gradients = torch.autograd.grad(loss, list(other.parameters()))
    for (name, value), before, gradient in zip(model.named_parameters(), other.parameters(), gradients, strict=True):
        torch.testing.assert_close(value.double(), before - 0.01 * gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(("limit", "is_flagged"), [(0.01, True), (1000.0, False)])
def test_a_model_without_a_flagged_class_stays_as_it_is(limit: float, is_flagged: bool) -> None:
    model, clean = prepared("resnet8", images=12)
    before = copy.deepcopy(model.state_dict())
    repair = NeuralCleanseUnlearning(detector=NeuralCleanse(epochs=2, batch_size=6, limit=limit))
    (stage,) = repair.stages(Finetune())
    assert isinstance(stage, Operation)
    details = stage.operate(model, clean, tools_of(clean))
    assert bool(details["flagged"]) == bool(details["flagged_classes"]) == is_flagged
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert bool(changed) == is_flagged
    assert not model.training


def test_options_of_the_detector_are_options_of_the_repair() -> None:
    default, other = (
        REPAIRS.build(one) for one in ("neural_cleanse", {"name": "neural_cleanse", "detector": {"epochs": 3}})
    )
    assert default.identity() == {"name": "neural_cleanse", "detector": NeuralCleanse().identity()}
    assert isinstance(other, NeuralCleanseUnlearning)
    assert other.detector.epochs == 3
    assert other.identity() != default.identity()
    with pytest.raises(ComponentError, match="epoch"):
        REPAIRS.build({"name": "neural_cleanse", "detector": {"epoch": 3}})
