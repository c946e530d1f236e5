"""What `docs/silent-choices.md` says of the networks, the optimizer and the crop is what the code does; and
what it says of BackdoorBench's triggers and pruning, recomputed from that code's formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from bdray.models import build_model
from bdray.recipes import Train
from bdray.repairs.fine_pruning import pruning_curve
from bdray.training.augmentation import augment
from bdray.training.optimization import lr_factor, make_optimizer
from bdray.triggers import build_trigger
from bdray.triggers.blend import Blend
from bdray.triggers.sinusoid import Sinusoid
from bdray.triggers.warp import Warp


def built(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(name, 10, 32)


@pytest.mark.parametrize(
    ("name", "eps", "momentum"),
    [
        ("resnet8", 1e-5, 0.1),
        ("resnet18", 1e-5, 0.1),
        ("preact_resnet18", 1e-5, 0.1),
        ("nasnet_mobile", 1e-3, 0.1),
        ("airbench", 1e-12, 0.4),
    ],
)
def test_batch_norms(name: str, eps: float, momentum: float) -> None:
    norms = [module for module in built(name).modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(eps, momentum)}
    assert all(bool((norm.weight == 1).all()) and not norm.bias.any() for norm in norms)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_convolutions_of_residual_networks_are_normal_over_fan_out(name: str) -> None:
    for module in built(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.06)
            assert module.weight.abs().max() > 3 * module.weight.std(), "a uniform draw ends at 1.7 deviations"


def test_convolutions_of_nasnet_and_all_heads_are_uniform_over_fan_in() -> None:
    network = built("nasnet_mobile")
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert module.weight.abs().max().item() <= bound * 1.00001
            if module.weight.numel() > 4000:
                assert module.weight.abs().max().item() >= 0.99 * bound
    for name in ("resnet8", "resnet18", "preact_resnet18"):
        head = built(name).get_submodule("head.fc" if name == "preact_resnet18" else "fc")
        assert isinstance(head, nn.Linear)
        assert head.weight.detach().abs().max().item() <= 1 / math.sqrt(head.in_features)
        assert head.bias.any()


def test_every_parameter_is_decayed_and_momentum_is_nesterovs() -> None:
    network = built("resnet8")
    optimizer = make_optimizer(network.parameters(), Train(), 0.1)
    assert {(group["weight_decay"], group["nesterov"]) for group in optimizer.param_groups} == {(5e-4, True)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    plain = make_optimizer(network.parameters(), Train(nesterov=False), 0.1)
    assert not any(group["nesterov"] for group in plain.param_groups)


def test_the_rate_moves_every_step_and_cosine_ends_above_zero() -> None:
    assert len({lr_factor("cosine", step, 50) for step in range(50)}) == 50
    assert lr_factor("cosine", 49, 50) == pytest.approx((1 - math.cos(math.pi / 50)) / 2)
    assert lr_factor("one_cycle", 0, 100) == pytest.approx(1 / 25)
    assert lr_factor("one_cycle", 99, 100) == pytest.approx(1 / 250_000)


def test_the_crop_reflects() -> None:
    """No zeros come in from outside, and every value was one of the picture's own row."""
    rows = torch.arange(1, 33, dtype=torch.uint8).view(1, 1, 32, 1).expand(64, 3, 32, 32).contiguous()
    cropped = augment(rows, "crop", torch.Generator().manual_seed(0))
    assert cropped.min() >= 1
    shifts = {int(picture[0, 16, 0]) - 17 for picture in cropped}
    assert shifts == set(range(-4, 5))


SIDE = 32
COLUMNS = torch.arange(SIDE, dtype=torch.float64)


def pictures() -> torch.Tensor:
    """Whole levels that no trigger drives out of 0..255: float64, `N x 3 x S x S`."""
    return torch.randint(50, 206, (64, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).double()


def blended(images: torch.Tensor) -> torch.Tensor:
    return 0.8 * images + 0.2 * Blend().picture(SIDE, SIDE).double()


def with_a_wave(images: torch.Tensor) -> torch.Tensor:
    # In its arithmetic: where the wave is zero, its float32 is a little less, and the picture loses a whole level.
    return images + (20 * torch.sin(2 * torch.pi * (COLUMNS + 1) * 6 / SIDE)).float().double()


def warped(images: torch.Tensor) -> torch.Tensor:
    grid = Warp().sampling_grid(SIDE, SIDE).double()
    return nn.functional.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=True)


@pytest.mark.parametrize(("name", "computed"), [("blend", blended), ("sinusoid", with_a_wave), ("warp", warped)])
def test_pictures_that_are_cut_off_are_0_4_to_0_5_levels_darker(name: str, computed: Any) -> None:
    images = pictures()
    here, exact = build_trigger(name).stamp(images.to(torch.uint8)).double(), computed(images)
    assert (here - exact).abs().max() <= 0.5 + 1e-3
    difference = exact.floor().mean() - here.mean()
    assert -0.505 <= difference.item() <= -0.395


def test_a_sinusoid_counts_columns_from_1_and_backdoorbenchs_is_as_high_as_delta_40() -> None:
    theirs = 40 * torch.sin(2 * torch.pi * COLUMNS * 6 / SIDE)
    ours = Sinusoid(delta=40).signal(SIDE)
    assert torch.allclose(ours, theirs.roll(-1), atol=1e-9)
    assert not torch.allclose(ours, theirs, atol=1.0)
    assert torch.allclose(Sinusoid().signal(SIDE), ours / 2)


@pytest.mark.parametrize("max_drop", [0.05, 0.2, 0.4])
def test_fine_pruning_here_has_pruned_n_channels_after_n_steps_and_backdoorbenchs_one_less(max_drop: float) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(200, 24, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 2, 24)
    weight = torch.randn(5, 24, generator=generator, dtype=torch.float64)
    labels = (features @ weight.T).argmax(1)
    order, correct = pruning_curve(features, labels, weight, None)

    def right_without(gone: torch.Tensor) -> int:
        return int((features @ weight.index_fill(1, gone, 0.0).T).argmax(1).eq(labels).sum())

    least = (1 - max_drop) * len(labels)
    for step in range(len(order)):
        assert correct[step] == right_without(order[:step])
        # Its mask is laid on one network, which stays as it is when the loop ends.
        theirs = order[: max(0, step - 1)]
        if right_without(theirs) < least:
            break
    ours = next(n for n, count in enumerate(correct.tolist()) if count < least) - 1
    assert (len(theirs), step) == (ours + 1, ours + 2)
