"""Neural attention distillation against its formula, written out for single images in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from retraining import network, normalized, pictures, stage_of
from torch import nn

from bdray.errors import ConditionError
from bdray.models.networks.taps import forward_outputs
from bdray.repairs.nad import AttentionDistillation, attention_map
from bdray.training.loop import run_stage

POINTS = ("stage1", "stage2", "stage3")


def attention(maps: np.ndarray) -> np.ndarray:
    """`C x H x W` to a unit vector over positions."""
    flat = (maps**2).sum(axis=0).ravel()
    return flat / np.linalg.norm(flat)


def test_the_first_loss_is_that_of_the_formula() -> None:
    teacher, student, beta = network(1), network(0), 300.0
    stage = stage_of(AttentionDistillation(beta))
    before = copy.deepcopy(student).train()
    state = stage.start(student, teacher)
    run_stage(stage, state)
    images, labels = pictures()
    with torch.no_grad():
        own = forward_outputs(before.double(), normalized(images).double(), capture=POINTS)
        taught = forward_outputs(copy.deepcopy(teacher).double().eval(), normalized(images).double(), capture=POINTS)
    expected = nn.functional.cross_entropy(own.logits, labels).item()
    for point in POINTS:
        pairs = zip(own.hidden[point].numpy(), taught.hidden[point].numpy(), strict=True)
        expected += beta * np.mean([(attention(one) - attention(other)) ** 2 for one, other in pairs])
    assert state.history[0].loss == pytest.approx(expected, rel=1e-4)


def test_the_student_comes_nearer_and_the_teacher_stays() -> None:
    teacher, student = network(1), network(0)
    kept = copy.deepcopy(teacher.state_dict())
    stage = stage_of(AttentionDistillation(1000.0), epochs=6, lr=0.02)
    state = stage.start(student, teacher)
    run_stage(stage, state)
    losses = [epoch.loss for epoch in state.history]
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < losses[0]
    assert state.objective_state is not None
    assert state.objective_state is not teacher
    for name, value in state.objective_state.state_dict().items():
        assert torch.equal(value, kept[name])


def test_both_see_the_same_pictures_where_batches_are_mixed() -> None:
    """Found: boxes were pasted into the student's pictures alone, and maps of other pictures compared."""
    student = network(0)
    stage = stage_of(AttentionDistillation(1.0), epochs=3, augment="cutmix")
    state = stage.start(student, network(1))
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    assert state.objective_state is not None
    networks = {"student": student, "teacher": state.objective_state}
    for name, each in networks.items():
        each.register_forward_pre_hook(
            lambda module, args, name=name: (
                seen[name].append(args[0].clone()) if name == "teacher" or module.training else None
            )
        )
    run_stage(stage, state)
    assert len(seen["student"]) == 3
    plain = normalized(pictures()[0])
    for own, taught in zip(seen["student"], seen["teacher"], strict=True):
        assert torch.equal(own, taught)
        assert not all(any(torch.equal(row, each) for each in plain) for row in own), "some are mixed"


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ConditionError, match="nad needs maps of channels, height and width; here they are 17 x 8"):
        attention_map(torch.zeros(2, 17, 8))
