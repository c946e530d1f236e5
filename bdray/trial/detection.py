"""What a detector's scores say beside the truth, which it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bdray.record import FeaturesRecord

_FARTHEST = 500

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """Scores of things, and what they are.

    Attributes:
        scores: float64, `N`; higher: more suspicious.
        positive: which are what is looked for (poisoned, triggered, a target class): bool, `N`.
        flagged: which the method itself would act on: bool, `N`.
        cover: which carry the trigger and keep their label: neither positive nor negative: bool, `N`.
    """

    scores: Floats
    positive: Flags
    flagged: Flags
    cover: Flags

    def measured(self) -> dict[str, Any]:
        """Counts and rates, for the record: see `bdray.record.Answer`. Rates over nothing are None."""
        negative = ~(self.positive | self.cover)
        ranking = _ranking(self.scores[self.positive], self.scores[negative])
        return {
            "positives": int(self.positive.sum()),
            "negatives": int(negative.sum()),
            "covers": int(self.cover.sum()),
            **ranking,
            "tpr": _share(self.flagged[self.positive]),
            "fpr": _share(self.flagged[negative]),
            "covers_flagged": _share(self.flagged[self.cover]),
        }


def plane_of(features: Floats, poisoned: Flags, label: int) -> FeaturesRecord:
    """Where samples lie in the plane of their first two principal components.

    Args:
        features: float64, `N x D`, `N` and `D` at least 2.
        poisoned: bool, `N`.
        label: what all of them are trained with.
    """
    from sklearn.decomposition import PCA

    fitted = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):
        # Where all are alike, nothing varies: no share of it.
        places = fitted.fit_transform(features)
    units = (_FARTHEST * places / max(float(np.abs(places).max()), np.finfo(np.float64).tiny)).round().astype(int)
    first, second = np.nan_to_num(fitted.explained_variance_ratio_).tolist()
    return FeaturesRecord(
        label=label,
        variance=(first, second),
        poisoned=tuple((x, y) for x, y in units[poisoned].tolist()),
        clean=tuple((x, y) for x, y in units[~poisoned].tolist()),
    )


def _share(flags: Flags) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _ranking(positive: Floats, negative: Floats) -> dict[str, float]:
    """Rates that need no threshold; empty where there is nothing to tell apart."""
    if not len(positive) or not len(negative):
        return {}
    from sklearn.metrics import auc, average_precision_score, roc_curve

    truth = np.repeat([1, 0], [len(positive), len(negative)])
    scores = np.concatenate([positive, negative])
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    at = {f"tpr_at_{percent}": float(true[false <= percent / 100].max()) for percent in (1, 5, 10)}
    return {"auroc": float(auc(false, true)), "ap": float(average_precision_score(truth, scores)), **at}
