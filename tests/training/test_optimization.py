from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from bdray.recipes import Optimization
from bdray.training.optimization import lr_factor, make_optimizer, norm_biases_of, select_layers, set_lr

PEAK = 0.37


def rates_of(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < steps else None
    return rates


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 7, 10, 20, 33, 100])
def test_one_cycle_is_torchs(steps: int) -> None:
    theirs = rates_of(
        lambda optimizer: OneCycleLR(
            optimizer, max_lr=PEAK, total_steps=steps, anneal_strategy="cos", cycle_momentum=False
        ),
        steps,
    )
    assert [PEAK * lr_factor("one_cycle", step, steps) for step in range(steps)] == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("steps", [2, 5, 30])
def test_cosine_is_torchs(steps: int) -> None:
    theirs = rates_of(lambda optimizer: CosineAnnealingLR(optimizer, T_max=steps), steps)
    assert [PEAK * lr_factor("cosine", step, steps) for step in range(steps)] == pytest.approx(theirs, rel=1e-9)


def test_constant_is_constant() -> None:
    assert {lr_factor("constant", step, 9) for step in range(9)} == {1.0}


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_a_single_step_uses_the_whole_rate(schedule: Literal["one_cycle", "cosine", "constant"]) -> None:
    assert lr_factor(schedule, 0, 1) == 1.0


@pytest.mark.parametrize(
    ("recipe", "reference"),
    [
        (
            {"momentum": 0.8},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=5e-4),
        ),
        ({"momentum": 0.0, "weight_decay": 0.0}, lambda p: torch.optim.SGD(p, lr=0.1)),
        ({"optimizer": "adamw", "weight_decay": 0.02}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.02)),
    ],
)
def test_optimizers_step_as_torchs_plain_ones(
    recipe: dict[str, Any], reference: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    start = torch.randn(50, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = make_optimizer([ours], Optimization(**recipe), 0.1)
    plain = reference([theirs])
    for _ in range(5):
        for parameter, stepper in ((ours, optimizer), (theirs, plain)):
            stepper.zero_grad()
            (parameter.sin() * torch.arange(50)).sum().backward()
            stepper.step()
    assert not torch.equal(ours, start)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_spares_what_it_must_not_pull(optimizer: str) -> None:
    network, temperature = (nn.Parameter(torch.full((3,), 100.0).log()) for _ in range(2))
    start = temperature.detach().clone()
    recipe = Optimization.model_validate({"optimizer": optimizer, "weight_decay": 0.1})
    stepper = make_optimizer([network], recipe, 0.1, undecayed=[temperature])
    for _ in range(100):
        network.grad, temperature.grad = torch.zeros(3), torch.zeros(3)
        stepper.step()
    assert torch.equal(temperature, start)
    assert float(network.abs().max()) < 0.5 * float(start[0])
    temperature.grad = torch.ones(3)
    stepper.step()
    assert (temperature < start).all()


def test_layers_name_what_is_trained(new_model: Callable[..., nn.Module]) -> None:
    model = new_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def chosen(layers: Literal["all", "head", "batch_norm"]) -> set[str]:
        returned = {names[id(parameter)] for parameter in select_layers(model, layers)}
        assert returned == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        return returned

    assert chosen("head") == {"fc.weight", "fc.bias"}
    assert chosen("batch_norm") == {name for name in names.values() if ".bn" in name or name.startswith("bn")}
    assert chosen("all") == set(names.values())


def test_the_triangle_is_the_published_one() -> None:
    """Jordan's schedule: straight lines between three points."""
    steps = 100
    expected = np.interp(np.arange(steps), [0, 23, steps], [0.2, 1.0, 0.07])
    assert [lr_factor("triangular", step, steps) for step in range(steps)] == pytest.approx(list(expected))


def test_norm_biases_move_faster_and_decay_as_all_others() -> None:
    norm, linear = nn.BatchNorm1d(3), nn.Linear(3, 3)
    nn.init.ones_(norm.bias)
    nn.init.ones_(linear.weight)
    network = nn.Sequential(norm, linear)
    recipe = Optimization(norm_bias_lr=64.0, weight_decay=0.01, momentum=0.0)
    biases = norm_biases_of(network)
    optimizer = make_optimizer(network.parameters(), recipe, 0.1, norm_biases=biases)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_lr(optimizer, 0.05)
    optimizer.step()
    torch.testing.assert_close(norm.bias, torch.full((3,), 1 - 0.05 * 0.01))
    torch.testing.assert_close(linear.weight, torch.full((3, 3), 1 - 0.05 * 0.01))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = norm.bias.detach().clone(), linear.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before[0] - norm.bias, torch.full((3,), 64 * 0.05), rtol=1e-3, atol=0)
    torch.testing.assert_close(before[1] - linear.weight, torch.full((3, 3), 0.05), rtol=0.02, atol=0)
