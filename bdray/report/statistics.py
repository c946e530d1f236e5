"""The statistics of a report: small, exact where they can be, each with its formula and its source."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Equivalence:
    """Outcome of two one-sided tests.

    Attributes:
        mean: of the differences.
        p_value: of the null hypothesis that the true mean lies at or beyond the margin.
    """

    mean: float
    p_value: float


@dataclass(frozen=True)
class Share:
    """What one axis explains.

    Attributes:
        levels: distinct values of the axis.
        share: eta squared, in [0, 1].
        by_chance: what an axis with so many levels is expected to reach when it does nothing.
    """

    axis: str
    levels: int
    share: float
    by_chance: float


@dataclass(frozen=True)
class SignTest:
    """Counts of the signs of differences. `p_value`: two-sided; 1 where all are ties."""

    lower: int
    higher: int
    ties: int
    p_value: float


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a proportion: all p with |successes/trials - p| <= z sqrt(p (1 - p) / trials).

    Source: Wilson 1927, J. Am. Stat. Assoc. 22.

    Raises:
        ValueError: `trials` is 0 or less than `successes`.
    """
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def bootstrap_interval(values: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0) -> Interval | None:
    """Percentile interval of the mean over resamples with replacement; None for fewer than two values.

    With a handful of values it is too narrow: it knows no spread but theirs. Source: Efron 1979, Ann. Stat. 7.
    """
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None
    if len(set(values)) == 1:
        return Interval(values[0], values[0])
    found = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def equivalence(differences: Sequence[float], margin: float) -> Equivalence | None:
    """Two one-sided t-tests of whether the mean of paired differences lies within `(-margin, margin)`.

    t1 = (mean + margin) / se against <= 0, t2 = (mean - margin) / se against >= 0, se = s / sqrt(n), n - 1 degrees of
    freedom; the p-value is the larger one. None for fewer than two differences, and where none differs from another:
    they tell nothing of the spread. Source: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15.

    Raises:
        ValueError: the margin is not positive.
    """
    from scipy.stats import t as student

    if margin <= 0:
        raise ValueError(f"the margin must be positive, got {margin}")
    n = len(differences)
    if n < 2 or len(set(differences)) == 1:
        return None
    mean = fmean(differences)
    error = float(np.std(differences, ddof=1)) / n**0.5
    above = student.sf((mean + margin) / error, n - 1)
    below = student.cdf((mean - margin) / error, n - 1)
    return Equivalence(mean, float(max(above, below)))


def variance_shares(rows: Sequence[Mapping[str, Hashable]], values: Sequence[float]) -> list[Share]:
    """Main-effect eta squared of every axis: between-group sum of squares / total sum of squares.

    Descriptive. On a balanced grid (`is_balanced`) main effects are orthogonal, so the shares add up to at most 1 and
    the rest is interactions; elsewhere they overlap. An axis with k levels over n values is expected to reach
    (k - 1) / (n - 1) when the values are dealt out at random. Axes with one level, or with a level for every value,
    say nothing and are left out. Source: Fisher 1925, Statistical Methods for Research Workers, ch. VII.

    Args:
        rows: by axis, its value; the same axes in each.
        values: one a row.

    Returns:
        Largest share first; empty where the values do not vary.
    """
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    total = float(((data - data.mean()) ** 2).sum()) if n else 0.0
    if total <= 1e-24 * max(1, n):
        return []
    shares = []
    for axis in rows[0]:
        groups: dict[Hashable, list[float]] = defaultdict(list)
        for row, value in zip(rows, values, strict=True):
            groups[row[axis]].append(value)
        if 1 < len(groups) < n:
            between = sum(len(group) * (fmean(group) - data.mean()) ** 2 for group in groups.values())
            shares.append(Share(axis, len(groups), float(between / total), (len(groups) - 1) / (n - 1)))
    return sorted(shares, key=lambda share: -share.share)


def is_balanced(rows: Sequence[Mapping[str, Hashable]]) -> bool:
    """Whether every combination of axis values is there, and equally often."""
    if not rows:
        return False
    counts = Counter(tuple(row.values()) for row in rows)
    combinations = 1
    for axis in rows[0]:
        combinations *= len({row[axis] for row in rows})
    return len(counts) == combinations and len(set(counts.values())) == 1


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the given order.

    Sorted ascending, p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)). Source: Holm 1979, Scand. J. Stat. 6.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def sign_test(differences: Sequence[float]) -> SignTest:
    """Exact test of whether differences are as often negative as positive: Binomial(n, 1/2) over those that are not 0.

    Source: Dixon and Mood 1946, J. Am. Stat. Assoc. 41.
    """
    from scipy.stats import binomtest

    lower = sum(difference < 0 for difference in differences)
    higher = sum(difference > 0 for difference in differences)
    p_value = float(binomtest(lower, lower + higher).pvalue) if lower + higher else 1.0
    return SignTest(lower, higher, len(differences) - lower - higher, p_value)


def detector_auc(strata: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """How well "its clean accuracy is low" tells poisoned models from baselines: area under the ROC curve.

    The share of pairs (poisoned, baseline) in which the poisoned one has the lower accuracy, ties counting half, over
    pairs of the same stratum. 0.5: no better than a coin. None without a pair. Source: Hanley and McNeil 1982,
    Radiology 143.

    Args:
        strata: clean accuracies of poisoned models and of the baselines they may be compared with.
    """
    pairs, won = 0, 0.0
    for poisoned, baselines in strata:
        pairs += len(poisoned) * len(baselines)
        won += sum((p < b) + (p == b) / 2 for p in poisoned for b in baselines)
    return won / pairs if pairs else None
