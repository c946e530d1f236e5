"""One perturbation for a whole class: the best there is where that is known, inside its ball, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from bdray.cli import main
from bdray.poisoning.narcissus import universal_noise

SPACE = """
name: made
seeds: [0]
fixed: {data: {name: digits, image_size: 16, train_limit: 200, test_limit: 50}, model: resnet8,
  train: {epochs: 1, batch_size: 32}, trigger: patch, poison: {strategy: STRATEGY, rate: 0.02}}
parameters: {}
"""


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pictures(count: int, low: int, high: int) -> torch.Tensor:
    return torch.randint(low, high, (count, 3, 4, 4), dtype=torch.uint8, generator=generator())


def noise_of(model: nn.Module, images: torch.Tensor, target: int = 1, epochs: int = 60) -> torch.Tensor:
    return universal_noise(
        model, images, target, epsilon=0.1, epochs=epochs, lr=0.005, generator=generator(), batch_size=5
    )


def test_of_a_linear_model_it_is_the_corner_of_the_ball_that_the_target_lies_in() -> None:
    """The loss of two classes falls along one direction alone, whatever the image: every value goes to its end."""
    linear = nn.Linear(48, 2, bias=False)
    weight = 0.05 * torch.randn(2, 48, generator=generator())
    linear.weight.data = weight
    model = nn.Sequential(nn.Flatten(), linear).requires_grad_(False)
    corner = 0.1 * (weight[1] - weight[0]).sign().view(3, 4, 4)
    assert torch.equal(noise_of(model, pictures(12, 60, 190)), corner.clamp(-0.1, 0.1))


def test_it_leads_all_images_where_no_random_noise_does_and_is_the_same_every_time() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).eval().requires_grad_(False)
    images = pictures(12, 0, 256)

    def loss(noise: torch.Tensor) -> float:
        shown = (images.double() / 255 + noise.double()).clamp(0, 1)
        logits = network.double()(shown)
        network.float()
        return float(-logits.log_softmax(1)[:, 2].mean())

    found = noise_of(network, images, target=2)
    assert torch.equal(found, noise_of(network, images, target=2))
    assert float(found.abs().max()) <= 0.1 + 1e-6
    signs = torch.randint(0, 2, (5, *found.shape), generator=generator()) * 2 - 1
    random = [0.1 * one for one in signs]
    assert loss(found) < min(map(loss, [*random, torch.zeros_like(found)]))


def test_every_pass_is_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).requires_grad_(False)
    heard: list[tuple[int, int]] = []
    universal_noise(
        model,
        pictures(3, 0, 256),
        0,
        epsilon=0.1,
        epochs=2,
        lr=0.01,
        generator=generator(),
        tick=lambda done, total, loss: heard.append((done, total)),
    )
    assert heard == [(1, 2), (2, 2)]


def test_the_command_writes_what_the_additive_trigger_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE.replace("STRATEGY", "clean_label"))
    made = ("--output", "a: b #.npy", "--epochs", "2", "--levels", "4", "--device", "cpu", "--threads", "1")
    assert main(["narcissus", "space.yaml", *made]) == 0
    noise = np.load("a: b #.npy")
    assert (noise.shape, noise.dtype) == ((3, 16, 16), np.float32)
    assert 0 < np.abs(noise).max() <= 4 + 1e-4
    said = capsys.readouterr().out
    assert "test_trigger: {strength: 3}" in said
    # What is printed is pasted into a search space, whatever the path holds.
    lines = "\n".join(line.strip() for line in said.splitlines() if line.startswith("  "))
    assert yaml.safe_load(lines)["trigger"] == {"name": "additive", "path": "a: b #.npy"}
    Path("space.yaml").write_text(SPACE.replace("STRATEGY", "all_to_all"))
    assert main(["narcissus", "space.yaml", *made]) == 2
    assert "poison.strategy: 'all_to_all' has no target" in capsys.readouterr().err
