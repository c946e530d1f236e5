"""SCAn against its formulas as the paper writes them, in loops over samples, and on planted groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from detecting import Items, linear, noise, tools

from bdray.detectors.scan import Decomposition, StatisticalContamination, anomaly_indices, two_groups


def drawn(classes: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    stretch = np.diag([1.0, 2.0, 0.5, 1.5])
    return 3 * random.normal(size=(classes, 4))[labels] + random.normal(size=(len(labels), 4)) @ stretch, labels


def by_the_paper(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariances between and within classes (the paper's equations 5 to 8), sample by sample."""
    centred = features - features.mean(0)
    kinds = range(labels.max() + 1)
    means = np.stack([centred[labels == kind].mean(0) for kind in kinds])
    between = within = np.zeros((4, 4))
    for _ in range(101):
        before = between, within
        between, within = np.cov(means[labels].T), np.cov((centred - means[labels]).T)
        if sum(np.linalg.norm(a - b) for a, b in zip(before, (between, within), strict=True)) <= 1e-5:
            break
        inverse = np.linalg.inv(within)
        for kind in kinds:
            own = centred[labels == kind]
            gain = -np.linalg.inv(len(own) * between + within) @ between @ inverse
            means[kind] = -sum(within @ gain @ sample for sample in own)
    return between, within


def test_the_decomposition_is_the_paper_s() -> None:
    features, labels = drawn(5, 30)
    between, within = by_the_paper(features, labels)
    found = Decomposition.of(features, labels)
    # Whitening is free to turn: what it makes of distances is not.
    assert found.whitening @ found.whitening.T == pytest.approx(np.linalg.inv(within), rel=1e-6)
    back = np.linalg.pinv(found.whitening)
    assert back.T @ found.between @ back == pytest.approx(between, rel=1e-6, abs=1e-9)


def test_the_gain_is_the_ratio_of_likelihoods() -> None:
    features, labels = drawn(5, 30)
    between, within = by_the_paper(features, labels)
    spread, inverse = Decomposition.of(features, labels), np.linalg.inv(within)
    own = (features - features.mean(0))[labels == 2]
    own[:8] += 6
    gain, smaller = two_groups((own) @ spread.whitening, spread.between, 0)
    assert smaller.nonzero()[0].tolist() == list(range(8))
    change = -np.linalg.inv(len(own) * between + within) @ between @ inverse
    mean = -sum(within @ change @ sample for sample in own)
    expected = 0.0
    for sample, is_smaller in zip(own, smaller, strict=True):
        apart, alone = sample - own[smaller == is_smaller].mean(0), sample - mean
        expected += alone @ inverse @ alone - apart @ inverse @ apart
    assert gain == pytest.approx(expected / len(own), rel=1e-6)


def test_the_index_of_classes() -> None:
    gains = np.array([1.0, 1.2, 0.9, 9.0, 1.1])
    assert anomaly_indices(gains) == pytest.approx((gains - 1.1) / (1.4826 * 0.1))
    assert anomaly_indices(np.ones(4)).tolist() == [0] * 4


def test_a_class_with_a_second_group_is_found() -> None:
    clean = Items(100 + noise(60) // 8, torch.arange(60) % 6)
    images, labels = 100 + noise(180) // 8, torch.arange(180) % 6
    group = (labels == 4).nonzero().flatten()[:8]
    images[group, :, :1] = 255
    scores = StatisticalContamination().score(linear(6, 4), Items(images, labels), replace(tools(6), clean=clean))
    flagged = StatisticalContamination().flagged(scores, labels)
    assert flagged.nonzero().flatten().tolist() == group.tolist()


def test_without_clean_pictures_it_says_so() -> None:
    with pytest.raises(ValueError, match="scan needs clean pictures"):
        StatisticalContamination().score(linear(2, 4), Items(noise(8), torch.arange(8) % 2), tools(2))


@pytest.mark.parametrize("count", [1, 2])
def test_of_single_clean_pictures_it_says_that_they_are_too_few(count: int) -> None:
    """Found: a single one was an index out of bounds; with one of each class every sample was called clean."""
    clean = Items(noise(count), torch.arange(count))
    with pytest.raises(ValueError, match="scan needs several clean pictures of a class"):
        StatisticalContamination().score(
            linear(2, 4), Items(noise(8), torch.arange(8) % 2), replace(tools(2), clean=clean)
        )
