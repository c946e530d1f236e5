"""Triggers over the whole image, against their papers' formulas written again in float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from bdray.triggers import build_trigger
from bdray.triggers.blend import Blend
from bdray.triggers.warp import Warp


def noise(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.77, 1.0])
@pytest.mark.parametrize("pattern", ["noise", "rings"])
def test_blend_is_chens_equation(alpha: float, pattern: str) -> None:
    trigger = Blend.model_validate({"alpha": alpha, "pattern": pattern})
    images = noise(3, 32, 40)
    k, x = trigger.picture(32, 40).numpy().astype(np.float64), images.numpy().astype(np.float64)
    exact = alpha * k + (1 - alpha) * x
    stamped = trigger.stamp(images).numpy().astype(np.float64)
    # float32 may round an exact half the other way, and nothing else.
    assert np.abs(stamped - exact).max() <= 0.5 + 1e-4


def test_blend_noise_is_uniform_and_named_by_its_seed() -> None:
    picture = Blend().picture(32, 32).double()
    assert float(picture.mean()) == pytest.approx(127.5, abs=3)
    assert float(picture.std()) == pytest.approx(73.9, abs=2)
    assert not torch.equal(Blend(pattern_seed=1).picture(64, 64), Blend().picture(64, 64))


@pytest.mark.parametrize("side", [64, 96, 224])
def test_blend_noise_has_one_contrast_at_every_size(side: int) -> None:
    """Seen from afar too: Pillow's box filter, which averages what lies under a pixel, gives the small picture back."""
    small = Blend().picture(32, 32)
    large = Image.fromarray(Blend().picture(side, side).permute(1, 2, 0).numpy())
    shrunk = np.asarray(large.resize((32, 32), Image.Resampling.BOX))
    np.testing.assert_array_equal(shrunk, small.permute(1, 2, 0).numpy())
    assert np.asarray(large).std() == pytest.approx(small.numpy().std(), rel=1e-12)


def test_rings_look_the_same_at_every_size() -> None:
    small = Blend(pattern="rings").picture(64, 64).double()
    large = Blend(pattern="rings").picture(256, 256).double()
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert float((small - shrunk).abs().max()) < 6


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 50)])
@pytest.mark.parametrize(("delta", "frequency"), [(20 / 255, 6.0), (40, 2.5)])
def test_sinusoid_is_barnis_equation(height: int, width: int, delta: float, frequency: float) -> None:
    images = noise(2, height, width)
    amplitude = delta * 255 if delta <= 1 else delta
    expected = images.numpy().astype(np.float64)
    for j in range(1, width + 1):
        expected[..., j - 1] += amplitude * math.sin(2 * math.pi * j * frequency / width)
    expected = np.clip(expected, 0, 255)
    stamped = build_trigger("sinusoid", delta=delta, frequency=frequency).stamp(images)
    assert np.abs(stamped.numpy() - expected).max() <= 0.5 + 1e-9


def test_sinusoid_takes_levels_and_fractions_for_the_same_setting() -> None:
    levels, fraction = build_trigger("sinusoid", delta=20), build_trigger("sinusoid", delta=20 / 255)
    assert levels == fraction == build_trigger("sinusoid")
    assert levels.identity() == fraction.identity()


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel with a = -0.75, the one that PyTorch's bicubic uses."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _upsample(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic, corners on corners, edges repeated."""
    k = len(points)
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y, x = i * (k - 1) / (height - 1), j * (k - 1) / (width - 1)
            for row in range(math.floor(y) - 1, math.floor(y) + 3):
                for column in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = points[min(max(row, 0), k - 1), min(max(column, 0), k - 1)]
                    out[i, j] += value * _cubic(y - row) * _cubic(x - column)
    return out


@pytest.mark.parametrize(("height", "width", "k", "s"), [(32, 32, 4, 0.5), (20, 33, 5, 1.5)])
def test_warp_is_wanets_formula(height: int, width: int, k: int, s: float) -> None:
    trigger = Warp(grid_size=k, strength=s, pattern_seed=3)
    control = trigger.control().double().numpy()
    assert np.abs(control).mean() == pytest.approx(1, abs=1e-6)
    columns, rows = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    x = np.clip(columns + s * _upsample(control[0], height, width) / width, -1, 1)
    y = np.clip(rows + s * _upsample(control[1], height, width) / height, -1, 1)
    places = [(y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1)]
    images = noise(2, height, width)
    stamped = trigger.stamp(images).numpy()
    for image, warped in zip(images.numpy(), stamped, strict=True):
        for channel in range(3):
            exact = map_coordinates(image[channel].astype(np.float64), places, order=1, mode="nearest")
            assert np.abs(warped[channel] - exact).max() <= 0.5 + 5e-3


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 33)])
def test_covers_of_a_noisy_warp_are_wanets(height: int, width: int) -> None:
    """WaNet's code: the attack's own grid and uniform noise / size, clipped, sampled by `grid_sample`; in float64."""
    trigger = Warp(covers="noise", pattern_seed=3)
    images = noise(5, height, width)
    stamped = trigger.cover_trigger.stamp(images, generator=torch.Generator().manual_seed(6))
    drawn = torch.rand(5, height, width, 2, generator=torch.Generator().manual_seed(6)).double()
    grid = trigger.sampling_grid(height, width).double()
    for image, one, rand in zip(images, stamped, drawn, strict=True):
        moved = grid.clone()
        moved[..., 0] += (2 * rand[..., 0] - 1) / width
        moved[..., 1] += (2 * rand[..., 1] - 1) / height
        sampled = torch.nn.functional.grid_sample(
            image.double()[None], moved.clamp(-1, 1)[None], mode="bilinear", align_corners=True
        )[0]
        assert float((one - sampled).abs().max()) <= 0.5 + 5e-3
    assert not torch.equal(stamped, trigger.stamp(images))
    # Poisoned and test images are warped as without noise.
    assert torch.equal(trigger.stamp(images), Warp(pattern_seed=3).stamp(images))
    assert Warp().cover_trigger == Warp()


def test_warp_moves_by_about_half_its_strength_in_pixels() -> None:
    grid = Warp(grid_size=4, strength=0.5).sampling_grid(64, 64)
    identity = Warp(grid_size=4, strength=1e-9).sampling_grid(64, 64)
    pixels = (grid - identity) * 63 / 2
    assert 0.1 < float(pixels.abs().mean()) < 0.4


def test_filters_keep_structure_and_differ_in_colour() -> None:
    ramp = torch.linspace(0, 255, 32).to(torch.uint8).expand(1, 3, 32, 32)
    seen = set()
    for look in ("gotham", "kelvin", "lomo", "nashville", "sepia"):
        stamped = build_trigger("filter", look=look).stamp(ramp)
        middle = stamped[0, :, 16, 16].tolist()
        seen.add(tuple(middle))
        if look != "lomo":  # which darkens the corners
            assert (stamped[0].int().diff(dim=-1) >= 0).all(), look
    assert len(seen) == 5


def test_sepia_is_its_toning_matrix() -> None:
    images = noise(1)
    matrix = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    exact = np.clip(np.einsum("oc,chw->ohw", matrix, images[0].numpy().astype(np.float64)), 0, 255)
    assert np.abs(build_trigger("filter", look="sepia").stamp(images)[0].numpy() - exact).max() <= 0.5 + 1e-3


def test_filter_strength_mixes() -> None:
    images = noise(1)
    whole = build_trigger("filter").stamp(images).double()
    half = build_trigger("filter", strength=0.5).stamp(images).double()
    assert float((half - (whole + images.double()) / 2).abs().max()) <= 1.0
