"""Rates of a detector against counting pairs and thresholds one by one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from bdray.trial.detection import Found, plane_of


def drawn(seed: int, levels: int) -> Found:
    random = np.random.default_rng(seed)
    kind = random.choice(3, 90, p=[0.3, 0.6, 0.1])
    scores = (random.integers(levels, size=90) + (kind == 0)).astype(np.float64)
    return Found(scores, kind == 0, scores > levels / 2, kind == 2)


@pytest.mark.parametrize(("seed", "levels"), [(0, 3), (1, 10), (2, 10_000)])
def test_rates_by_counting(seed: int, levels: int) -> None:
    found = drawn(seed, levels)
    positive = found.scores[found.positive].tolist()
    negative = found.scores[~(found.positive | found.cover)].tolist()
    measured = found.measured()
    wins = sum(Fraction(p > n) + Fraction(p == n) / 2 for p in positive for n in negative)
    assert measured["auroc"] == pytest.approx(float(wins / len(positive) / len(negative)))

    def above(scores: list[float], threshold: float) -> int:
        return sum(score >= threshold for score in scores)

    for percent in (1, 5, 10):
        allowed = [t for t in {*positive, *negative} if 100 * above(negative, t) <= percent * len(negative)]
        best = max((above(positive, t) / len(positive) for t in allowed), default=0.0)
        assert measured[f"tpr_at_{percent}"] == pytest.approx(best)
    precision, before = 0.0, 0
    for threshold in sorted({*positive, *negative}, reverse=True):
        hits = above(positive, threshold)
        precision += (hits - before) / len(positive) * hits / (hits + above(negative, threshold))
        before = hits
    assert measured["ap"] == pytest.approx(precision)
    assert (measured["positives"], measured["negatives"]) == (len(positive), len(negative))
    assert measured["covers"] == 90 - len(positive) - len(negative)
    assert measured["tpr"] == pytest.approx(above(positive, levels / 2 + 1e-9) / len(positive))
    assert measured["fpr"] == pytest.approx(above(negative, levels / 2 + 1e-9) / len(negative))


def test_covers_are_counted_apart() -> None:
    flags = np.array([True, False, True, False])
    cover = np.array([False, False, True, True])
    found = Found(np.array([4.0, 1.0, 9.0, 0.0]), np.array([True, False, False, False]), flags, cover)
    measured = found.measured()
    assert measured["auroc"] == measured["ap"] == measured["tpr_at_1"] == 1.0
    assert (measured["tpr"], measured["fpr"], measured["covers_flagged"]) == (1.0, 0.0, 0.5)


def test_without_anything_poisoned_there_are_false_alarms_alone() -> None:
    nothing = np.zeros(4, dtype=np.bool_)
    found = Found(np.arange(4.0), nothing, np.arange(4) > 2, nothing)
    measured = found.measured()
    assert "auroc" not in measured
    assert (measured["tpr"], measured["fpr"], measured["negatives"]) == (None, 0.25, 4)


def test_samples_lie_where_the_singular_vectors_put_them() -> None:
    """In float64, up to the sign of an axis and the rounding to whole units."""
    features = np.random.default_rng(0).normal(size=(60, 9)) * np.linspace(4, 1, 9)
    poisoned = np.arange(60) < 20
    features[poisoned] += 3
    found = plane_of(features, poisoned, 7)
    left, values, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    exact = left[:, :2] * values[:2]
    exact *= 500 / np.abs(exact).max()
    assert found.variance == pytest.approx(values[:2] ** 2 / (values**2).sum())
    placed = np.array([*found.poisoned, *found.clean], dtype=np.float64)
    placed *= np.sign((placed * exact).sum(0))
    assert np.abs(placed - exact).max() <= 0.5
    assert (len(found.poisoned), len(found.clean), found.label) == (20, 40, 7)


def test_samples_that_are_all_alike_lie_in_the_middle() -> None:
    found = plane_of(np.ones((4, 3)), np.array([True, False, False, True]), 0)
    assert {*found.poisoned, *found.clean} == {(0, 0)}
    assert found.variance == (0.0, 0.0)
