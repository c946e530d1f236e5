"""Triggers made of rounding and of frequencies, against their papers' formulas written again, pixel by pixel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn, idctn

from bdray.errors import BdrayError
from bdray.triggers import build_trigger
from bdray.triggers.frequency import Frequency


def noise(count: int, height: int = 32, width: int = 32, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(low, high, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("depth", range(1, 8))
def test_bpp_rounds_to_the_nearest_of_its_levels(depth: int) -> None:
    levels = np.linspace(0, 255, 2**depth)
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    stamped = build_trigger("bpp", depth=depth).stamp(ramp)[0, 0].flatten().numpy()
    nearest = [levels[np.abs(levels - value).argmin()] for value in range(256)]
    np.testing.assert_array_equal(stamped, np.round(nearest))
    assert len(set(stamped.tolist())) == 2**depth


def _floyd_steinberg(channel: np.ndarray, depth: int) -> np.ndarray:
    """From left to right and from top to bottom, one pixel after the other."""
    work, steps = channel.astype(np.float64).copy(), 2**depth - 1
    height, width = work.shape
    for y in range(height):
        for x in range(width):
            level = round(work[y, x] / 255 * steps) / steps * 255
            error, work[y, x] = work[y, x] - level, level
            for dy, dx, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if y + dy < height and 0 <= x + dx < width:
                    work[y + dy, x + dx] += error * share / 16
    return work


@pytest.mark.parametrize("shape", [(32, 32), (9, 20), (20, 9), (1, 7), (7, 1)], ids=str)
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_bpp_dithers_as_floyd_and_steinberg_do(depth: int, shape: tuple[int, int]) -> None:
    images = noise(2, *shape)
    stamped = build_trigger("bpp", depth=depth, dithering=True).stamp(images).numpy()
    for image, one in zip(images.numpy(), stamped, strict=True):
        for channel in range(3):
            exact = np.clip(_floyd_steinberg(image[channel], depth), 0, 255)
            np.testing.assert_array_equal(one[channel], np.round(exact))


def test_bpp_dithers_one_bit_as_pillow_does() -> None:
    """Pillow diffuses in whole numbers: it rounds errors, so that a few pixels come out otherwise."""
    image = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1)))
    pillow = np.asarray(image.convert("1")) * 255.0
    stamped = build_trigger("bpp", depth=1, dithering=True).stamp(
        torch.from_numpy(np.asarray(image).copy()).expand(1, 3, -1, -1)
    )
    assert pillow.reshape(8, 8, 8, 8).mean(axis=(1, 3)) == pytest.approx(
        stamped[0, 0].double().view(8, 8, 8, 8).mean(dim=(1, 3)).numpy(), abs=24
    )
    assert float(stamped.double().mean()) == pytest.approx(float(np.asarray(image).mean()), abs=1)


# Forward only, from the standards: ITU-R BT.601 luma, Cr and Cb as OpenCV scales them, U and V as PAL does.
_LUMA = np.array([0.299, 0.587, 0.114])
_RED, _BLUE = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
_FORWARD = {
    "ycrcb": np.stack([_LUMA, 0.713 * (_RED - _LUMA), 0.564 * (_BLUE - _LUMA)]),
    "yuv": np.stack([_LUMA, 0.492 * (_BLUE - _LUMA), 0.877 * (_RED - _LUMA)]),
}


@pytest.mark.parametrize("space", ["ycrcb", "yuv"])
@pytest.mark.parametrize(
    ("block", "coefficients", "shape"),
    [(32, [(15, 15), (31, 31)], (32, 32)), (8, [(0, 3), (5, 1)], (16, 24)), (32, [(15, 15)], (64, 96))],
)
def test_frequency_adds_to_the_coefficients_of_every_block(
    space: str, block: int, coefficients: list[tuple[int, int]], shape: tuple[int, int]
) -> None:
    """There and back: colours, transform, add, transform, colours, with the inverse of the matrix computed."""
    images = noise(2, *shape, low=60, high=190)
    exact = np.einsum("oc,nchw->nohw", _FORWARD[space], images.numpy().astype(np.float64))
    for top in range(0, shape[0], block):
        for left in range(0, shape[1], block):
            window = exact[:, 1:, top : top + block, left : left + block]
            spectrum = dctn(window, axes=(2, 3), norm="ortho")
            for row, column in coefficients:
                spectrum[:, :, row, column] += 60
            window[...] = idctn(spectrum, axes=(2, 3), norm="ortho")
    exact = np.einsum("oc,nchw->nohw", np.linalg.inv(_FORWARD[space]), exact)
    trigger = build_trigger("frequency", space=space, block=block, coefficients=coefficients, magnitude=60)
    # The standards' numbers have three digits.
    slack = 0.002 * np.abs(exact - images.numpy()).max()
    assert np.abs(trigger.stamp(images).numpy() - exact).max() <= 0.5 + slack


def test_frequency_is_the_cosine_formula() -> None:
    """2 / N * sum of cos((2y + 1) u pi / 2N) cos((2x + 1) v pi / 2N), for u and v above 0."""
    n, magnitude = 32, 30.0
    pattern = Frequency(magnitude=magnitude).pattern(n, n)
    for y, x in ((0, 0), (3, 17), (31, 8)):
        waves = sum(
            math.cos((2 * y + 1) * u * math.pi / (2 * n)) * math.cos((2 * x + 1) * u * math.pi / (2 * n))
            for u in (15, 31)
        )
        exact = 2 / n * magnitude * waves
        assert pattern[:, y, x] == pytest.approx([1.403 * exact, (-0.714 - 0.344) * exact, 1.773 * exact], abs=1e-9)


def test_frequency_repeats_its_block_and_cuts_the_last() -> None:
    pattern = Frequency().pattern(40, 64)
    np.testing.assert_array_equal(pattern[:, :32, 32:], pattern[:, :32, :32])
    np.testing.assert_array_equal(pattern[:, 32:], pattern[:, :8])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"coefficients": [[31, 32]]}, r"\[31, 32\] is outside blocks of 32 x 32"),
        ({"block": 8}, r"\[15, 15\] is outside blocks of 8 x 8"),
        ({"coefficients": [[3, 3], [3, 3]]}, "named twice"),
        ({"coefficients": []}, "at least 1"),
    ],
)
def test_frequencies_that_are_none(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(BdrayError, match=problem):
        build_trigger("frequency", **options)
