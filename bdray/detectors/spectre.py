"""SPECTRE: spectral signatures of features that are whitened by a covariance that poisoned samples cannot bend."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdray.detectors.base import DETECTORS, TrainingSetDetector
from bdray.detectors.robust_covariance import RANK, undisturbed, whitened
from bdray.detectors.spectral_signatures import classes_of
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn

SHARPNESS = 4.0
"""The paper's alpha."""
MOST = 100
"""Principal components."""
EACH = 10
"""Samples of the class for each of them at least: fewer say little about a covariance (the paper has 50)."""
REMOVED = 1.5
"""Times what is expected: how many samples are taken out."""
FILTERED = 2.0
"""Times what is expected: how many samples the covariance is estimated without, at most."""


@DETECTORS.register("spectre")
class Spectre(TrainingSetDetector):
    """Scores by quantum entropy (QUE) of a class's penultimate features, which are whitened by a robust estimate of
    their covariance: a direction in which a class varies more than most of its samples do weighs the more. How many
    principal components are used, up to 100, is chosen by the mean score of the class, and so is the target: of the
    class with the highest mean, 1.5 times `expected` of its samples are flagged, at least one. Of other classes none
    is, and of a set without poison as many are.
    """

    SOURCE: ClassVar[str] = "Hayase, Kong, Somani & Oh 2021 (SPECTRE, arXiv 2104.11315), by the authors' code"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"poisoned set", "labels", "features"})

    expected: float = Field(default=0.1, gt=0.0, le=0.3)
    """Part of the target class that is thought to be poisoned: the paper's epsilon."""

    def score(self, model: nn.Module, items: Labelled, tools: DetectorTools) -> torch.Tensor:
        import torch

        features = tools.outputs(model, items.images).features.double().numpy()
        scores = torch.zeros(len(features), dtype=torch.float64)
        classes = classes_of(items.labels)
        for done, members in enumerate(classes, 1):
            scores[members] = torch.from_numpy(class_scores(features[members.numpy()], self.expected))
            tools.tick(done, len(classes))
        return scores

    def flagged(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        import torch

        flags = torch.zeros(len(scores), dtype=torch.bool)
        target = max(classes_of(labels), key=lambda members: float(scores[members].mean()))
        order = scores[target].argsort(descending=True, stable=True)
        flags[target[order[: max(1, int(REMOVED * self.expected * len(target)))]]] = True
        return flags


def class_scores(features: np.ndarray, expected: float) -> np.ndarray:
    """QUE scores of one class in as many principal components as leave the highest mean score of all components once
    the highest scores are out. They are scaled to this mean, by which classes are compared: float64, `n`; 0 where
    nothing varies.

    Args:
        features: float64, `n x D`.
    """
    reduced = principal_components(features)
    count = max(1, round(expected * len(reduced)))
    best, found = 0.0, np.zeros(len(reduced))
    for size in sizes(reduced.shape[1]):
        scores = que_scores(robustly_whitened(reduced[:, :size], count))
        left = scores.argsort(kind="stable")[: len(scores) - round(REMOVED * count)]
        mean = que_scores(whitened(reduced, covariance(reduced[left]))).mean()
        if mean > best:
            best, found = mean, scores * (mean / scores.mean())
    return found


def principal_components(features: np.ndarray) -> np.ndarray:
    """Of the class, those that vary, one for every ten samples and 100 at most: centred, `n x d`."""
    left, roots, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    varying = int((roots > math.sqrt(RANK) * roots[0]).sum())
    reduced: np.ndarray = (left * roots)[:, : min(varying, MOST, max(1, len(features) // EACH))]
    return reduced


def sizes(most: int) -> list[int]:
    """How many principal components are tried: ten squares up to `most`, rounded."""
    return sorted({round(root**2) for root in np.linspace(1, math.sqrt(most), 10)}) if most else []


def robustly_whitened(samples: np.ndarray, count: int) -> np.ndarray:
    """By their covariance without those that the filter takes out. `samples`: centred, `n x d`; `count`: expected."""
    if samples.shape[1] == 1:
        return samples
    kept = undisturbed(samples, count / len(samples), round(FILTERED * count))
    return whitened(samples, covariance(samples[kept]))


def que_scores(white: np.ndarray) -> np.ndarray:
    """y'My / tr M for M = exp(alpha (S - 1) / (|S| - 1)), with S the covariance of all samples y: float64, `n`."""
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(white.T)))
    # Less the largest: it leaves the ratio as it is, and no exponential is too large.
    weights = np.exp(SHARPNESS * (values - values[-1]) / max(values[-1] - 1, np.finfo(np.float64).tiny))
    found: np.ndarray = np.square(white @ vectors) @ (weights / weights.sum())
    return found


def covariance(samples: np.ndarray) -> np.ndarray:
    """`d x d`, of the samples and not of what they are drawn from: over `n`."""
    return np.atleast_2d(np.cov(samples.T, ddof=0))
