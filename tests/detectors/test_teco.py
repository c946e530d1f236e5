"""TeCo: each corruption against another way to it, and the score by a loop."""

from __future__ import annotations

import colorsys
import io
from typing import Any

import numpy as np
import pytest
import torch
from detecting import Items, linear, noise, tools
from PIL import Image
from scipy.ndimage import gaussian_filter

from bdray.detectors import teco
from bdray.detectors.teco import CORRUPTIONS, CorruptionConsistency, to_levels

PICTURES = noise(6, side=32)
VALUES = PICTURES.float() / 255


def corrupted(kind: str, at: int) -> np.ndarray:
    corrupt, strengths = CORRUPTIONS[kind]
    return corrupt(VALUES, strengths[at], torch.Generator().manual_seed(1)).numpy()


def test_brightness_is_the_value_of_hsv() -> None:
    found = corrupted("brightness", 2)
    for image, bright in zip(VALUES.numpy(), found, strict=True):
        for row, column in ((0, 0), (5, 9), (31, 31)):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column])
            expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.3))
            assert bright[:, row, column] == pytest.approx(expected, abs=1e-5)


def test_contrast_draws_towards_the_mean() -> None:
    mean = VALUES.numpy().mean((2, 3), keepdims=True)
    assert corrupted("contrast", 3) == pytest.approx(mean + 0.1 * (VALUES.numpy() - mean), abs=1e-5)


def test_jpeg_is_pillow_s() -> None:
    for image, found in zip(PICTURES.numpy(), corrupted("jpeg", 0), strict=True):
        packed = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(packed, "JPEG", quality=25)
        expected = np.asarray(Image.open(packed), dtype=float).transpose(2, 0, 1)
        assert np.abs(expected - 255 * found).mean() < 2


def test_blur_is_scipy_s() -> None:
    sigma = 3 * 32 / 224 * 2
    expected = gaussian_filter(
        VALUES.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=round(3 * sigma) / sigma
    )
    assert corrupted("gaussian_blur", 2) == pytest.approx(expected, abs=1e-4)


def test_noise_has_the_moments_of_its_distribution() -> None:
    flat = torch.full((40, 3, 32, 32), 0.4)
    drawn = torch.Generator().manual_seed(2)
    made = {name: CORRUPTIONS[name][0](flat, strength, drawn) for name, strength in
            (("gaussian_noise", 0.18), ("shot_noise", 12), ("impulse_noise", 0.27))}  # fmt: skip
    assert float(made["gaussian_noise"].std()) == pytest.approx(0.18, rel=0.02)
    assert float(made["shot_noise"].var()) == pytest.approx(0.4 / 12, rel=0.03)
    assert float(made["shot_noise"].mean()) == pytest.approx(0.4, rel=0.01)
    assert [float((made["impulse_noise"] == value).float().mean()) for value in (0, 1)] == pytest.approx(
        [0.135] * 2, abs=0.01
    )


def test_the_score_is_the_deviation_of_first_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (0.2, 0.5, 0.9)

    def darker(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
        return images * (1 - strength)

    def half(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
        return torch.cat([images[..., :2] * (1 - strength), images[..., 2:]], 3)

    kinds: dict[str, Any] = {
        "darker": (darker, steps),
        "half": (half, steps),
        "none": (lambda images, *_: images, steps),
    }
    monkeypatch.setattr(teco, "CORRUPTIONS", kinds)
    pictures, model = noise(40), linear(5, 12)
    model.fc.bias.data = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.0])
    found = CorruptionConsistency().fit(model, Items(pictures, torch.zeros(40)), tools(5))(pictures)
    weight, shift = model.fc.weight.detach().double().numpy(), model.fc.bias.detach().double().numpy()

    def said(image: torch.Tensor) -> int:
        return int((weight @ (image.numpy().reshape(-1)[:12] / 255) + shift).argmax())

    for picture, score in zip(pictures, found.tolist(), strict=True):
        firsts = []
        for corrupt, _ in kinds.values():
            changes = [
                said(to_levels(corrupt(picture[None].float() / 255, strength, None))[0]) != said(picture)
                for strength in steps
            ]
            firsts.append(changes.index(True) + 1 if any(changes) else 4)
        assert score == pytest.approx(np.std(firsts))
    assert len(set(found.tolist())) > 2
