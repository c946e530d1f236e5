"""SCAn: the samples of an attacked class are a mixture of two groups, where those of others are one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdray.detectors.base import DETECTORS, TrainingSetDetector
from bdray.detectors.robust_covariance import RANK
from bdray.detectors.spectral_signatures import classes_of
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn

CONVERGED, MOST_ROUNDS = 1e-5, 100


@DETECTORS.register("scan")
class StatisticalContamination(TrainingSetDetector):
    """How much better two groups explain the features of a class than one: with the variation within and between
    classes of clean pictures, the logarithm of the ratio of likelihoods, a sample. Its index over classes is how far
    above the median it lies, in median absolute deviations times 1.4826. The samples of a class's smaller group have
    this index for a score, all others 0. Of two classes none can lie far above the median, so that none is flagged.
    """

    SOURCE: ClassVar[str] = "Tang, Wang, Tang & Zhang 2021 (SCAn, arXiv 1908.00686); scores of samples are ours"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"poisoned set", "labels", "features", "clean share"})

    limit: float = Field(default=math.exp(2), gt=0.0)
    """Index above which the smaller group of a class is flagged."""

    def score(self, model: nn.Module, items: Labelled, tools: DetectorTools) -> torch.Tensor:
        import torch

        if tools.clean is None or not len(tools.clean.images):
            raise ValueError("scan needs clean pictures: none are set aside")
        if np.bincount(tools.clean.labels.numpy()).max() < 2:
            raise ValueError("scan needs several clean pictures of a class: there is one of each, and nothing varies")
        clean = tools.outputs(model, tools.clean.images).features.double().numpy()
        spread = Decomposition.of(clean, tools.clean.labels.numpy())
        features = spread.whitened(tools.outputs(model, items.images).features.double().numpy())
        seed = int(torch.randint(2**31, (), generator=tools.generator))
        classes = classes_of(items.labels)
        split = [two_groups(features[members.numpy()], spread.between, seed) for members in classes]
        gains = np.array([gain for gain, _ in split])
        scores = torch.zeros(len(features), dtype=torch.float64)
        for members, (_, smaller), index in zip(classes, split, anomaly_indices(gains), strict=True):
            scores[members[torch.from_numpy(smaller)]] = float(index)
        return scores

    def flagged(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return scores > self.limit


@dataclass(frozen=True)
class Decomposition:
    """Variation of features within and between classes.

    Attributes:
        whitening: what a centred feature is multiplied by, so that the variation within classes is 1 in every
            direction: `D x d`.
        between: the covariance of class means, whitened: `d x d`.
    """

    whitening: np.ndarray
    between: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> Decomposition:
        """Estimated by expectation maximisation, as for faces (Chen et al. 2012): a feature is the mean of its class
        and what is its own, both normal. `features`: float64, `N x D`; `labels`: int64, `N`."""
        centred = features - features.mean(0)
        basis = _directions(np.cov(centred.T))
        reduced = centred @ basis
        kinds, counts = np.unique(labels, return_counts=True)
        averages = np.stack([reduced[labels == kind].mean(0) for kind in kinds])
        place = np.searchsorted(kinds, labels)
        means, between = averages, np.zeros((reduced.shape[1],) * 2)
        within = np.full_like(between, np.inf)
        for _ in range(MOST_ROUNDS):
            before = between, within
            between, within = (np.atleast_2d(np.cov(part.T)) for part in (means[place], reduced - means[place]))
            if sum(np.linalg.norm(new - old) for new, old in zip((between, within), before, strict=True)) <= CONVERGED:
                break
            means = np.stack([expected_mean(*one, between, within) for one in zip(averages, counts, strict=True)])
        own = _directions(within)
        scaled = own / np.sqrt(np.diag(own.T @ within @ own))
        return cls(basis @ scaled, scaled.T @ between @ scaled)

    def whitened(self, features: np.ndarray) -> np.ndarray:
        """`N x d`, centred. `features`: `N x D`."""
        whitened: np.ndarray = (features - features.mean(0)) @ self.whitening
        return whitened


def expected_mean(average: np.ndarray, count: int, between: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Of a class's mean, when `count` samples have this average: both `d`."""
    found: np.ndarray = between @ np.linalg.lstsq(between + within / count, average, rcond=None)[0]
    return found


def two_groups(features: np.ndarray, between: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """How much better two groups explain a class than one, a sample, and who is in the smaller one: bool, `n`.

    Args:
        features: whitened, `n x d`.
    """
    from sklearn.cluster import KMeans

    none = np.zeros(len(features), dtype=np.bool_)
    if len(np.unique(features, axis=0)) < 2:
        return 0.0, none
    mean = expected_mean(features.mean(0), len(features), between, np.eye(features.shape[1]))
    groups = KMeans(2, n_init=10, random_state=seed).fit(features)
    apart = features - groups.cluster_centers_[groups.labels_]
    gain = (np.square(features - mean).sum() - np.square(apart).sum()) / len(features)
    return float(gain), groups.labels_ == np.bincount(groups.labels_, minlength=2).argmin()


def anomaly_indices(gains: np.ndarray) -> np.ndarray:
    """(gain - median) / (1.4826 x median absolute deviation); 0 where all but single ones are alike."""
    from scipy.stats import median_abs_deviation

    deviation = 1.4826 * median_abs_deviation(gains)
    found: np.ndarray = (gains - np.median(gains)) / deviation if deviation > 0 else np.zeros_like(gains)
    return found


def _directions(covariance: np.ndarray) -> np.ndarray:
    """Orthogonal directions that vary: `D x d` (the paper takes a pseudo-inverse)."""
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    kept: np.ndarray = vectors[:, values > RANK * values[-1]]
    return kept
