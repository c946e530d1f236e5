from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from bdray.data import build_dataset


def test_eight_pixels_are_exactly_those_of_scikit_learn(tmp_path: Path) -> None:
    data = build_dataset("digits", image_size=8).load(tmp_path)
    images = torch.cat([data.train_images, data.test_images]).numpy()
    labels = torch.cat([data.train_labels, data.test_labels]).numpy()
    assert images.shape == (1797, 3, 8, 8)
    levels = np.rint(images[:, 0] / 255 * 16).astype(int)
    np.testing.assert_allclose(levels * 255 / 16, images[:, 0], atol=0.5)
    reference = load_digits()
    ours = sorted((int(label), image.tobytes()) for label, image in zip(labels, levels, strict=True))
    theirs = sorted(
        (int(label), image.astype(int).tobytes())
        for label, image in zip(reference.target, reference.images, strict=True)
    )
    assert ours == theirs
    assert (images == images[:, :1]).all()


def test_the_split_is_stratified_and_fixed(tmp_path: Path) -> None:
    data = build_dataset("digits").load(tmp_path)
    train, test = data.train_labels.bincount().numpy(), data.test_labels.bincount().numpy()
    np.testing.assert_array_equal(train + test, np.bincount(load_digits().target))
    np.testing.assert_allclose(test, 0.2 * (train + test), atol=0.5)
    assert data.train_images.shape[1:] == (3, 32, 32)
    assert data.class_names == tuple("0123456789")
    # The labels in order, so that a change of the split (which makes old results incomparable) is noticed.
    assert data.test_labels[:12].tolist() == [1, 2, 3, 8, 2, 3, 0, 3, 7, 8, 0, 5]


def test_enlarged_bicubically(tmp_path: Path) -> None:
    small = build_dataset("digits", image_size=8, train_limit=50).load(tmp_path).train_images.float()
    large = build_dataset("digits", image_size=32, train_limit=50).load(tmp_path).train_images.float()
    expected = torch.nn.functional.interpolate(small, (32, 32), mode="bicubic", antialias=True).clamp(0, 255)
    # Pillow clips after its first pass as well, so overshoots differ a little.
    assert (large - expected).abs().mean() < 1.0


def test_no_network_and_no_root_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path))
    assert build_dataset("digits", root=str(tmp_path / "ignored"), image_size=8).load().num_classes == 10
    assert not (tmp_path / "downloads").exists()
