from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from bdray.data.base import Augmentation
from bdray.training.augmentation import alternating_flips, augment


def images(side: int, count: int = 30) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_by_image(
    batch: np.ndarray, shifts: np.ndarray, flips: np.ndarray, border: Literal["reflect", "constant"]
) -> np.ndarray:
    """The same with numpy's own padding, one picture at a time."""
    side, pad = batch.shape[-1], int(np.abs(shifts).max())
    out = np.empty_like(batch)
    for i, image in enumerate(batch):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode=border)
        top, left = pad + shifts[0, i], pad + shifts[1, i]
        crop = padded[:, top : top + side, left : left + side]
        out[i] = crop[:, :, ::-1] if flips[i] else crop
    return out


@pytest.mark.parametrize("side", [8, 9, 31, 32])
@pytest.mark.parametrize("mode", ["crop", "crop_flip", "zero_crop_flip"])
def test_equals_a_crop_of_the_padded_image(side: int, mode: Augmentation) -> None:
    batch, drawn = images(side), generator()
    pad = side // 8
    shifts = torch.randint(-pad, pad + 1, (2, len(batch), 1), generator=drawn)[:, :, 0].numpy()
    flips = (torch.rand((len(batch), 1), generator=drawn) < 0.5)[:, 0].numpy()
    border: Literal["reflect", "constant"] = "constant" if mode == "zero_crop_flip" else "reflect"
    expected = image_by_image(batch.numpy(), shifts, np.zeros_like(flips) if mode == "crop" else flips, border)
    got = augment(batch, mode, generator())
    assert set(shifts.ravel()) >= {-pad, 0, pad}
    assert flips.any()
    assert not flips.all()
    np.testing.assert_array_equal(got.numpy(), expected)
    assert got.dtype == torch.uint8


def test_leaves_its_input_and_the_global_generator_alone() -> None:
    batch = images(16)
    before, state = batch.clone(), torch.get_rng_state()
    augment(batch, "crop_flip", generator())
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_is_a_function_of_the_generator() -> None:
    first, again, other = (augment(images(16), "crop_flip", generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_none_returns_the_images_themselves() -> None:
    batch = images(16)
    assert augment(batch, "none", generator()) is batch


def test_the_result_lies_channels_last() -> None:
    assert augment(images(16), "crop", generator()).is_contiguous(memory_format=torch.channels_last)


def test_alternating_flips_show_each_picture_both_ways() -> None:
    epochs = [alternating_flips(500, epoch, torch.Generator().manual_seed(2)) for epoch in (1, 2, 3)]
    assert torch.equal(epochs[0], ~epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert 200 < epochs[0].sum() < 300


def test_given_flips_are_made() -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flipped = torch.tensor([True, False] * 3)
    ours = augment(images, "crop_flip", torch.Generator().manual_seed(5), flipped)
    theirs = augment(images, "crop", torch.Generator().manual_seed(5))
    assert torch.equal(ours[1::2], theirs[1::2])
    assert torch.equal(ours[::2], theirs[::2].flip(-1))
