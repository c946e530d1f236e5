"""Implicit hypergradients against the exact gradient of a problem with a solution, and the first pattern by hand."""

from __future__ import annotations

import copy

import torch
from repairing import prepared, tools_of

from bdray.recipes import Finetune
from bdray.repairs import Operation
from bdray.repairs.i_bau import ImplicitBackdoorUnlearning, hypergradient


def test_a_hypergradient_is_the_gradient_through_the_exact_solution() -> None:
    """The pattern that makes p A p / 2 - p B w small is p = A^-1 B w."""
    drawn = torch.Generator().manual_seed(0)
    factor = torch.randn(5, 5, generator=drawn, dtype=torch.float64)
    curvature = factor @ factor.T / 5 + torch.eye(5, dtype=torch.float64)
    mixed = torch.randn(5, 3, generator=drawn, dtype=torch.float64)
    weights = torch.randn(3, generator=drawn, dtype=torch.float64, requires_grad=True)

    def solution(values: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(curvature, mixed @ values)

    def outer(pattern: torch.Tensor) -> torch.Tensor:
        return (pattern**3).sum() + (pattern[:3] * weights**2).sum()

    def inner(pattern: torch.Tensor) -> torch.Tensor:
        return pattern @ curvature @ pattern / 2 - pattern @ (mixed @ weights)

    (expected,) = torch.autograd.grad(outer(solution(weights)), weights)
    (found,) = hypergradient([weights], solution(weights), inner, outer, step=0.2, terms=300)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)
    (none,) = hypergradient([weights], solution(weights), inner, outer, step=0.2, terms=0)
    (direct,) = torch.autograd.grad(outer(solution(weights).detach()), weights)
    torch.testing.assert_close(none, direct)


def test_the_first_pattern_is_a_step_against_what_the_model_says() -> None:
    model, clean = prepared("resnet8", images=12)
    found = ImplicitBackdoorUnlearning(batch_size=16, radius=0.25).worst_pattern(model, tools_of(clean))
    other = copy.deepcopy(model).double()
    pattern = torch.zeros(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    logits = other(((clean.images.double() / 255 + pattern) - clean.normalize.mean) / clean.normalize.std)
    loss = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
    expected = 10 * torch.autograd.grad(loss, pattern)[0]
    assert float(expected.norm()) > 0.25
    torch.testing.assert_close(found.double(), 0.25 * expected / expected.norm(), atol=1e-5, rtol=1e-2)


def test_only_the_drawn_part_of_a_batch_has_the_pattern() -> None:
    _, clean = prepared("resnet8", images=4)
    repair = ImplicitBackdoorUnlearning(portion=0.25)
    drawn = [repair._drawn(count, tools_of(clean)) for count in (3, 40)]
    assert [int(chosen.sum()) for chosen in drawn] == [1, 10]


def test_it_leaves_the_mode_and_no_gradient() -> None:
    model, clean = prepared("resnet8", images=8)
    (stage,) = ImplicitBackdoorUnlearning(rounds=1).stages(Finetune())
    before = copy.deepcopy(model.state_dict())
    assert isinstance(stage, Operation)
    details = stage.operate(model, clean, tools_of(clean))
    length = details["pattern_length"]
    assert isinstance(length, float)
    assert 0 < length <= 10.001
    assert not model.training
    assert all(value.grad is None for value in model.parameters())
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in model.named_parameters()}


def test_networks_with_attention_are_unlearnt_too() -> None:
    """Found: torch's fused attention has no second derivative."""
    model, clean = prepared("timm/vit_tiny_patch16_224", images=4)
    (stage,) = ImplicitBackdoorUnlearning(rounds=1, terms=1).stages(Finetune())
    assert isinstance(stage, Operation)
    before = copy.deepcopy(model.state_dict())
    stage.operate(model, clean, tools_of(clean))
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
