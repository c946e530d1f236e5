"""Projected gradient ascent: stays in its ball, and finds the worst point where that is known exactly."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from bdray.poisoning.pgd import perturb, pgd_linf, to_uint8

EPSILON, STEP = 8 / 255, 2 / 255


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator(1)).float() / 255


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 3)).eval()


def attack(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int = 20, seed: int = 0
) -> torch.Tensor:
    return pgd_linf(model, images, labels, epsilon=EPSILON, step_size=STEP, steps=steps, generator=generator(seed))


def test_stays_in_ball_and_range_and_raises_the_loss(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    before = images.clone()
    moved = attack(network, images, labels)
    assert float((moved - images).abs().max()) <= EPSILON + 1e-6
    assert float(moved.min()) >= 0.0
    assert float(moved.max()) <= 1.0
    loss = lambda x: functional.cross_entropy(network(x), labels, reduction="none")  # noqa: E731
    assert (loss(moved) > loss(images)).all()
    assert (loss(moved) > loss(attack(network, images, labels, steps=0))).all()
    assert torch.equal(images, before)
    assert not moved.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_finds_the_corner_of_the_ball_that_is_worst_for_a_linear_model(images: torch.Tensor) -> None:
    weight = torch.randn(3 * 8 * 8, generator=generator(3))
    model = lambda x: torch.stack([x.flatten(1) @ weight, torch.zeros(len(x))], dim=1)  # noqa: E731
    moved = pgd_linf(
        model,
        images,
        torch.zeros(6, dtype=torch.int64),
        epsilon=EPSILON,
        step_size=STEP,
        steps=20,
        generator=generator(),
    )
    # The loss of class 0 grows as its logit falls, so every pixel goes against its weight as far as it may.
    worst = (images - EPSILON * weight.sign().view(3, 8, 8)).clamp(0, 1)
    torch.testing.assert_close(moved, worst, atol=1e-6, rtol=0)


def test_an_image_moves_alike_in_any_batch(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    together = attack(network, images, labels)
    # The first image's random start is the same, because the stream begins with it.
    alone = attack(network, images[:1], labels[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)


def test_same_seed_same_images(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    assert torch.equal(attack(network, images, labels), attack(network, images, labels))
    assert not torch.equal(attack(network, images, labels, 0, 0), attack(network, images, labels, 0, 1))


def test_works_where_gradients_are_switched_off(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    with torch.no_grad():
        moved = attack(network, images, labels)
    assert torch.equal(moved, attack(network, images, labels))


@pytest.mark.parametrize("levels", range(1, 17))
def test_rounding_keeps_whole_levels_of_the_ball(levels: int) -> None:
    original = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator(4))
    signs = torch.randint(0, 2, original.shape, generator=generator(5)) * 2 - 1
    moved = (original.float() / 255 + signs * (levels / 255)).clamp(0, 1)
    rounded = to_uint8(moved, original, levels / 255)
    assert rounded.dtype == torch.uint8
    assert torch.equal(rounded.int(), (original.int() + signs * levels).clamp(0, 255))
    assert torch.equal(rounded, to_uint8(moved, original, round(levels / 255, 5)))
    assert int((to_uint8(moved, original, (levels - 0.5) / 255).int() - original.int()).abs().max()) == levels - 1


def test_stored_images_are_perturbed_in_batches(network: nn.Module, labels: torch.Tensor) -> None:
    stored = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator(1))
    before = stored.clone()
    attack = partial(perturb, network, stored, labels, epsilon=EPSILON, step_size=STEP, steps=5)
    perturbed = attack(generator=generator(), batch_size=4)
    assert torch.equal(stored, before)
    assert int((perturbed.int() - stored.int()).abs().max()) == 8
    loss = lambda x: functional.cross_entropy(network(x.float() / 255), labels, reduction="none")  # noqa: E731
    assert (loss(perturbed) > loss(stored)).all()
    whole = attack(generator=generator(), batch_size=6)
    assert torch.equal(whole[:4], perturbed[:4])
