"""The statistics of a report: small, exact where they can be, each with its formula and its source."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import numpy as np

CONFIDENCE = 0.95


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
        parent: the axis it was judged within; empty for an axis of its own.
    """

    axis: str
    levels: int
    share: float
    by_chance: float
    parent: str = ""


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a proportion: all p with |successes/trials - p| <= z sqrt(p (1 - p) / trials).

    Source: Wilson 1927, J. Am. Stat. Assoc. 22.

    Raises:
        ValueError: `trials` is 0 or less than `successes`.
    """
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def newcombe_interval(first: tuple[int, int], second: tuple[int, int], confidence: float = CONFIDENCE) -> Interval:
    """Hybrid score interval of p1 - p2, each given as successes and trials, from the Wilson intervals of both.

    [d - sqrt((p1 - low1)^2 + (high2 - p2)^2), d + sqrt((high1 - p1)^2 + (p2 - low2)^2)] with d = p1 - p2. The two are
    taken to be independent. Source: Newcombe 1998, Stat. Med. 17 (method 10).
    """
    p, q = (successes / trials for successes, trials in (first, second))
    one, two = (wilson_interval(*counts, confidence) for counts in (first, second))
    low, high = math.hypot(p - one.low, two.high - q), math.hypot(one.high - p, q - two.low)
    return Interval(p - q - low, p - q + high)


@lru_cache(maxsize=1000)
def _quantiles(n: int, confidence: float) -> tuple[float, float]:
    """Student's (n - 1 degrees of freedom) and the normal one; `scipy.stats` takes most of a second to import."""
    from scipy.special import ndtri, stdtrit

    tail = (1 + confidence) / 2
    return float(stdtrit(n - 1, tail)), float(ndtri(tail))


def t_interval(values: Sequence[float], noise: float = 0.0, confidence: float = CONFIDENCE) -> Interval | None:
    """Student's interval of a mean, mean +- t(n - 1) s / sqrt(n), or mean +- z noise / sqrt(n) where that is wider.

    Source: Student 1908, Biometrika 6.

    Args:
        noise: standard deviation that a single value has from counting alone. It is known, so it takes the normal
            quantile z, and values that happen to agree do not look certain.

    Returns:
        None for fewer than two values, and for values without spread or noise: they tell nothing of it.
    """
    n = len(values)
    if n < 2:
        return None
    student, normal = _quantiles(n, confidence)
    mean = fmean(values)
    # Of a handful of numbers, thousands of times: numpy takes ten times as long.
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    wide = max(student * spread, normal * noise)
    # What rounding leaves of equal numbers is no spread.
    if wide <= 1e-12:
        return None
    reach = wide / n**0.5
    return Interval(mean - reach, mean + reach)


def rate_interval(rates: Sequence[float], images: Sequence[int], confidence: float = CONFIDENCE) -> Interval | None:
    """Student's interval of the mean of log(p / (1 - p)), transformed back: of the typical (median) rate over seeds.

    On that scale no interval leaves [0, 1], and the spread of few seeds is closer to normal; `docs/statistics.md` has
    what it covers. Rates of 0 and 1 are taken to be half an image away from there. Counting alone has the spread
    1 / sqrt(n p (1 - p)). None for fewer than two rates.

    Args:
        rates: one a seed, in [0, 1].
        images: how many each was counted over.
    """
    if len(rates) < 2:
        return None
    clipped = [min(max(rate, 0.5 / n), 1 - 0.5 / n) for rate, n in zip(rates, images, strict=True)]
    noise = math.sqrt(fmean(1 / (n * p * (1 - p)) for p, n in zip(clipped, images, strict=True)))
    found = t_interval([math.log(p / (1 - p)) for p in clipped], noise, confidence)
    return Interval(_expit(found.low), _expit(found.high)) if found else None


def _expit(x: float) -> float:
    """1 / (1 + exp(-x)), whatever the size of x."""
    return 1 / (1 + math.exp(-x)) if x > -500 else 0.0


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


def variance_shares(
    rows: Sequence[Mapping[str, Hashable]], values: Sequence[float], parents: Mapping[str, str] | None = None
) -> list[Share]:
    """Main-effect eta squared of every axis: between-group sum of squares / total sum of squares.

    An axis that exists only under some values of another one, its parent, is judged within it, over the values it
    applies to: (SS(parent x axis) - SS(parent)) / (SS(total) - SS(parent)). Else it would get what its parent does.

    Descriptive. On a balanced grid (`is_balanced`) main effects are orthogonal, so the shares add up to at most 1 and
    the rest is interactions; elsewhere they overlap. An axis with k levels over n values is expected to reach
    (k - 1) / (n - 1) when the values are dealt out at random, a nested one (k - p) / (n - p) with k combinations and p
    levels of the parent. Axes with one level, or with a level for every value, say nothing and are left out. Source:
    Fisher 1925, Statistical Methods for Research Workers, ch. VII.

    Args:
        rows: by axis, its value (None: does not apply); the same axes in each.
        values: one a row.
        parents: by nested axis, its parent; empty where no axis is.

    Returns:
        Largest share first; empty where the values do not vary.
    """
    parents = parents or {}
    shares = [_share(axis, parents.get(axis), rows, values) for axis in (rows[0] if rows else ())]
    return sorted((share for share in shares if share), key=lambda share: -share.share)


def _share(
    axis: str, parent: str | None, rows: Sequence[Mapping[str, Hashable]], values: Sequence[float]
) -> Share | None:
    members = [index for index, row in enumerate(rows) if parent is None or row[axis] is not None]
    data = [values[index] for index in members]
    above = [rows[index][parent] if parent else None for index in members]
    joint = [(group, rows[index][axis]) for group, index in zip(above, members, strict=True)]
    n, groups, known = len(members), len(set(joint)), len(set(above))
    left = _between(range(n), data) - _between(above, data)
    if not known < groups < n or left <= 1e-24 * n:
        return None
    share = (_between(joint, data) - _between(above, data)) / left
    levels = len({level for _, level in joint})
    return Share(axis, levels, share, (groups - known) / (n - known), parent or "")


def _between(groups: Iterable[Hashable], values: Sequence[float]) -> float:
    """Sum of squares between the means of groups."""
    members: dict[Hashable, list[float]] = defaultdict(list)
    for group, value in zip(groups, values, strict=True):
        members[group].append(value)
    grand = fmean(values)
    return sum(len(group) * (fmean(group) - grand) ** 2 for group in members.values())


def parents_of(rows: Sequence[Mapping[str, Hashable]]) -> dict[str, str]:
    """By nested axis, its parent: the axis whose value decides whether it applies, or which values it takes.

    Parents are sought among axes of the same section (`trigger.` of `trigger.size`), its name first, then among the
    others. One that applies to some rows only, and no axis decides to which, has the parent "".
    """
    found = {}
    for axis in rows[0] if rows else ():
        section = axis.partition(".")[0] + "."
        others = sorted((o for o in rows[0] if o != axis), key=lambda o: (not o.startswith(section), not _is_word(o)))
        partial = any(row[axis] is None for row in rows)
        parent = next(
            (other for other in others if _nests(other, axis, rows, partial=partial)), "" if partial else None
        )
        if parent is not None:
            found[axis] = parent
    return found


def _is_word(axis: str) -> bool:
    return axis.endswith((".name", ".strategy"))


def _nests(parent: str, axis: str, rows: Sequence[Mapping[str, Hashable]], *, partial: bool) -> bool:
    """Whether `axis` applies under whole levels of `parent`; where it applies everywhere: takes other values there."""
    levels: dict[Hashable, set[Hashable]] = defaultdict(set)
    for row in rows:
        levels[row[parent]].add(row[axis])
    if len(levels) in (1, len(rows)):
        return False
    if partial:
        return all(len(values) == 1 or None not in values for values in levels.values())
    same_section = parent.partition(".")[0] == axis.partition(".")[0]
    return same_section and _is_word(parent) and len({frozenset(values) for values in levels.values()}) > 1


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


def mean_test(values: Sequence[float]) -> float | None:
    """Two-sided p-value of Student's test of whether the mean of independent values is 0.

    None for fewer than two values, and for values without any spread. Source: Student 1908, Biometrika 6.
    """
    from scipy.stats import ttest_1samp

    if len(values) < 2 or float(np.std(values)) <= 1e-12:
        return None
    return float(ttest_1samp(values, 0.0).pvalue)


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


def auc_interval(auc: float, poisoned: int, baselines: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of an area under the ROC curve: all A with |auc - A| <= z sqrt(V(A)), where
    V(A) = A (1 - A) (1 + N (1 - A) / (2 - A) + N A / (1 + A)) / (m n), N = (m + n) / 2 - 1.

    Unlike DeLong's it has a width where no model overlaps another (auc 0 or 1), and holds its level with few models
    (`docs/statistics.md`). Source: Newcombe 2006, Stat. Med. 25 (method 5), with Hanley's and McNeil's variance.

    Args:
        poisoned, baselines: how many *independent* models there are of either kind, m and n: of those that share a seed
            only one counts.

    Raises:
        ValueError: `auc` is outside [0, 1], or a kind has no model.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if not 0 <= auc <= 1 or min(poisoned, baselines) < 1:
        raise ValueError(f"no interval for an area of {auc} over {poisoned} poisoned models and {baselines} baselines")
    mean_size = (poisoned + baselines) / 2 - 1
    z = float(norm.ppf((1 + confidence) / 2))

    def beyond(area: float) -> float:
        spread = 1 + mean_size * ((1 - area) / (2 - area) + area / (1 + area))
        return (auc - area) ** 2 - z**2 * area * (1 - area) * spread / (poisoned * baselines)

    # Exactly 0 and 1 are roots that say nothing: there V is 0.
    edge = 1e-9
    inside = min(max(auc, edge), 1 - edge)
    low = float(brentq(beyond, edge, inside)) if inside > edge else 0.0
    high = float(brentq(beyond, inside, 1 - edge)) if inside < 1 - edge else 1.0
    return Interval(low, high)
