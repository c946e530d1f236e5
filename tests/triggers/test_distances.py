"""Against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bdray.errors import TriggerError
from bdray.trial.visibility import visibility
from bdray.triggers.distances import psnr, ssim


@pytest.fixture(params=[(32, 32), (33, 20), (11, 11), (40, 12)])
def pair(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    clean = torch.randint(0, 256, (4, 3, *request.param), dtype=torch.uint8, generator=generator)
    noise = torch.randint(-30, 31, clean.shape, generator=generator)
    return clean, (clean + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_equals_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255) for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(psnr(*pair), expected, rtol=1e-12)


def test_ssim_equals_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = [
        structural_similarity(
            a.numpy(),
            b.numpy(),
            data_range=255,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(ssim(*pair), expected, rtol=1e-10)


def test_averages_leave_equal_images_out_of_psnr_only(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    clean, stamped = pair[0], pair[1].clone()
    stamped[0] = clean[0]
    seen = visibility(clean, stamped)
    difference = np.abs(clean.numpy().astype(int) - stamped.numpy().astype(int)).max(axis=(1, 2, 3))
    assert seen.unchanged_images == 1
    assert seen.compared_images == 4
    assert seen.l_inf == difference.max()
    assert seen.l_inf_mean == pytest.approx(difference.mean())
    assert seen.psnr_db == pytest.approx(float(psnr(clean[1:], stamped[1:]).mean()))
    assert seen.ssim == pytest.approx(float(ssim(clean, stamped).mean()))


def test_equal_images() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = visibility(images, images)
    assert (seen.l_inf, seen.psnr_db, seen.unchanged_images) == (0.0, None, 2)
    assert seen.ssim == pytest.approx(1.0)


def test_large_sets_are_compared_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8, generator=generator)
    whole = visibility(clean, 255 - clean)
    monkeypatch.setattr("bdray.triggers.distances._CHUNK_VALUES", 2 * 3 * 16 * 16)
    assert visibility(clean, 255 - clean) == whole


def test_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(TriggerError, match="one shape"):
        visibility(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(TriggerError, match="uint8"):
        visibility(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
