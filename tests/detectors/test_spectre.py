"""SPECTRE against its formulas, with whole matrices where the detector has operators, and on a planted group."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detecting import Items, linear, tools
from scipy.linalg import expm, sqrtm

from bdray.detectors import spectre
from bdray.detectors.robust_covariance import allowed, filtered, most_varying_square, undisturbed, whitened
from bdray.detectors.spectral_signatures import SpectralSignatures
from bdray.detectors.spectre import Spectre, class_scores, que_scores


def heavy(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Samples whose tails are heavier than a normal distribution's, which the filter cuts."""
    samples = np.random.default_rng(seed).standard_t(2.5, (count, size)) @ np.diag(np.linspace(1, 3, size))
    return samples - samples.mean(0)


def kept_by_the_paper(samples: np.ndarray, part: float, most: int) -> np.ndarray:
    """The filter, with the whole covariance of y (x) y and its eigenvectors, and one sample at a time."""
    rows = list(range(len(samples)))
    while most:
        own = samples[rows]
        count, size = own.shape
        white = own @ np.linalg.inv(np.real(sqrtm(own.T @ own / count)))
        far = [y @ y >= 10 * size * math.log(count / 0.1) for y in white]
        if any(far):
            suspicion, limit = [float(y @ y) for y in white], None
        else:
            flat = np.eye(size).ravel()
            squares = np.stack([np.kron(y, y) for y in white])
            values, vectors = np.linalg.eigh(squares.T @ squares / count - np.outer(flat, flat))
            matrix = vectors[:, -1].reshape(size, size)
            if values[-1] <= (1 + 10 * part * math.log(1 / part) ** 2) * 2 * np.sum(matrix**2) / 2:
                break
            says = np.array([(y @ matrix @ y - np.trace(matrix)) / math.sqrt(2) for y in white])
            suspicion = np.abs(says - np.median(says)).tolist()
            candidates = sorted(value - 3 for value in suspicion if value > 3)
            limits = [t for t in candidates if np.mean([s >= t + 3 for s in suspicion]) >= allowed(t, part)]
            if not limits:
                break
            limit = limits[0]
        outside = [place for place in range(count) if (far[place] if limit is None else suspicion[place] > limit)]
        outside = sorted(outside, key=lambda place: -suspicion[place])[:most]
        most -= len(outside)
        rows = [row for place, row in enumerate(rows) if place not in outside]
    return np.isin(np.arange(len(samples)), rows)


@pytest.mark.parametrize(("size", "most", "seed"), [(3, 60, 0), (4, 60, 1), (7, 60, 2), (7, 12, 3)])
def test_the_filter_keeps_whom_the_paper_s_keeps(size: int, most: int, seed: int) -> None:
    samples = heavy(300, size, seed)
    kept = undisturbed(samples, 0.1, most)
    assert (kept == kept_by_the_paper(samples, 0.1, most)).all()
    assert 0 < (~kept).sum() <= most


def test_what_is_too_far_goes_first() -> None:
    samples = heavy(300, 2)
    samples[7] *= 1e3
    found = filtered(samples, 0.1)
    assert found is not None
    lengths, near = found
    inverse = np.linalg.inv(samples.T @ samples / 300)
    assert lengths == pytest.approx([x @ inverse @ x for x in samples])
    assert lengths[7] >= 20 * math.log(3000)
    assert (~near).nonzero()[0].tolist() == [7]


def test_a_normal_distribution_is_left_alone() -> None:
    samples = np.random.default_rng(0).normal(size=(500, 5)) @ np.diag([1.0, 2, 3, 4, 5])
    assert filtered(samples - samples.mean(0), 0.1) is None


def test_the_direction_is_the_first_eigenvector_of_the_squares() -> None:
    samples = heavy(200, 6)
    white = whitened(samples, samples.T @ samples / 200)
    assert white.T @ white / 200 == pytest.approx(np.eye(6), abs=1e-9)
    squares = np.stack([np.outer(y, y).ravel() for y in white])
    values, vectors = np.linalg.eigh(np.cov(squares.T, ddof=0))
    variance, direction = most_varying_square(white)
    assert variance == pytest.approx(values[-1], rel=1e-6)
    assert abs(float(direction.ravel() @ vectors[:, -1])) == pytest.approx(1, abs=1e-5)


def test_scores_are_the_paper_s() -> None:
    samples = heavy(120, 5)
    spread = np.cov(samples.T)
    weights = expm(4 * (spread - np.eye(5)) / (np.linalg.norm(spread, 2) - 1))
    expected = [y @ weights @ y / np.trace(weights) for y in samples]
    assert que_scores(samples) == pytest.approx(expected, rel=1e-9)


def test_of_the_components_those_are_taken_that_leave_the_highest_mean() -> None:
    features, found = heavy(300, 8), {}
    features[:25, 5:] += 4
    reduced = features - features.mean(0)
    reduced = reduced @ np.linalg.eigh(reduced.T @ reduced)[1][:, ::-1]
    for size in (1, 2, 3, 4, 5, 7, 8):
        part = reduced[:, :size]
        kept = undisturbed(part, 0.1, 60) if size > 1 else np.ones(300, dtype=bool)
        root = np.real(sqrtm(np.atleast_2d(np.cov(part[kept].T, ddof=0)))) if size > 1 else np.eye(1)
        scores = que_scores(part @ np.linalg.inv(root))
        left = scores.argsort()[:-45]
        whole = reduced @ np.linalg.inv(np.real(sqrtm(np.cov(reduced[left].T, ddof=0))))
        found[float(que_scores(whole).mean())] = scores
    mean = max(found)
    assert class_scores(features, 0.1) == pytest.approx(found[mean] / found[mean].mean() * mean, rel=1e-6)


def planted(classes: int = 3, each: int = 120, stamped: int = 6) -> tuple[Items, torch.Tensor]:
    """Where a few samples of class 1 differ in a pixel that hardly varies, beside others that vary much; who they are.

    The features that the network makes of pictures are their first 8 pixels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (classes * each, 3, 4, 4), dtype=torch.uint8, generator=generator)
    quiet = torch.randint(100, 106, (classes * each,), dtype=torch.uint8, generator=generator)
    images[:, 0, 1, 3] = quiet
    labels = torch.arange(classes * each) % classes
    who = (labels == 1).nonzero().flatten()[:stamped]
    images[who, 0, 1, 3] += 25
    return Items(images, labels), who


def test_it_finds_a_group_in_a_direction_that_varies_little() -> None:
    items, who = planted()
    detector, model = Spectre(expected=0.05), linear(3, 8)
    scores = detector.score(model, items, tools(3))
    flagged = detector.flagged(scores, items.labels).nonzero().flatten()
    assert set(who.tolist()) <= set(flagged.tolist())
    assert items.labels[flagged].unique().tolist() == [1]
    assert len(flagged) == int(1.5 * 0.05 * 120)
    by_variance = SpectralSignatures(expected=0.05)
    others = by_variance.flagged(by_variance.score(model, items, tools(3)), items.labels).nonzero().flatten()
    assert len(set(who.tolist()) & set(others.tolist())) <= 1, "the direction that varies most sees them, too"


def test_one_class_is_flagged_and_one_sample_at_least() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10)
    scores = torch.cat([torch.arange(20), torch.full((10,), 9) + torch.arange(10)]).double()
    assert Spectre(expected=0.2).flagged(scores, labels).nonzero().flatten().tolist() == [27, 28, 29]
    assert Spectre(expected=0.01).flagged(scores, labels).nonzero().flatten().tolist() == [29]


def test_where_nothing_varies_nothing_is_suspicious() -> None:
    assert class_scores(np.ones((5, 4)), 0.1).tolist() == [0.0] * 5
    assert class_scores(np.ones((1, 4)), 0.1).tolist() == [0.0]


def test_a_direction_that_only_outsiders_know_is_no_division_by_zero() -> None:
    features = heavy(100, 4)
    features[:, 3] = 0
    features[:5, 3] = 50
    scores = class_scores(features, 0.1)
    assert np.isfinite(scores).all()
    assert set(range(5)) <= set(scores.argsort()[-15:].tolist())


def test_ten_squares_of_components_are_tried() -> None:
    assert spectre.sizes(100) == [1, 4, 9, 16, 25, 36, 49, 64, 81, 100]
    assert spectre.sizes(1) == [1]
    assert spectre.principal_components(heavy(60, 20)).shape == (60, 6)
