"""Activation clustering: a class with poisoned samples falls into two clusters, the smaller of which is small."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.detectors.base import DETECTORS, TrainingSetDetector
from bdray.detectors.robust_covariance import RANK
from bdray.detectors.spectral_signatures import classes_of
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.registry import Sight

if TYPE_CHECKING:
    import torch
    from torch import nn


@DETECTORS.register("activation_clustering")
class ActivationClustering(TrainingSetDetector):
    """Two clusters (k-means) of each class's penultimate features in their first principal components. The score of a
    sample is the part of its class that is not in its cluster, the same for the whole cluster.

    The paper reduces by independent components. These span the same space, but have a variance of 1 each: `whiten`
    gives the distances that k-means sees among them.
    """

    SOURCE: ClassVar[str] = "Chen et al. 2018 (activation clustering; by relative size)"
    SEES: ClassVar[frozenset[Sight]] = frozenset({"poisoned set", "labels", "features"})

    components: int = Field(default=10, ge=1)
    """Dimensions that are clustered."""
    whiten: bool = False
    """Every dimension that varies with a variance of 1, as independent components have."""
    small: float = Field(default=0.35, gt=0.0, le=0.5)
    """A cluster that holds less of its class than this is flagged."""

    def score(self, model: nn.Module, items: Labelled, tools: DetectorTools) -> torch.Tensor:
        import torch
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA

        features = tools.outputs(model, items.images).features.double().numpy()
        scores = torch.zeros(len(features), dtype=torch.float64)
        seed = int(torch.randint(2**31, (), generator=tools.generator))
        for members in classes_of(items.labels):
            own = features[members.numpy()]
            if len({row.tobytes() for row in own}) < 2:
                continue
            fitted = PCA(min(self.components, *own.shape), whiten=self.whiten, random_state=seed)
            reduced = fitted.fit_transform(own)
            if self.whiten:
                # Where nothing varies, what is left at a variance of 1 are rounding errors.
                reduced = reduced[:, fitted.explained_variance_ > RANK * fitted.explained_variance_[0]]
            clusters = torch.from_numpy(KMeans(2, n_init=10, random_state=seed).fit_predict(reduced)).long()
            scores[members] = 1 - (clusters.bincount(minlength=2).double() / len(members))[clusters]
        return scores

    def flagged(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return scores > 1 - self.small
