"""The statistics of a report: small, exact where they can be, each with its formula and its source."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np

CONFIDENCE = 0.95
LEVEL = 0.05
ALL_FLIPS = 20
"""Up to so many values the sign-flip test takes all ways to flip their signs."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


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

    Next to 0 and 1 (1 to 3 successes or failures) these ends are too near, and a rate of 0.1 % would be held in 91 %
    of cases: there the far ends are those of the Poisson distribution's one-sided interval. Sources: Wilson 1927, J.
    Am. Stat. Assoc. 22; Brown, Cai and DasGupta 2001, Stat. Sci. 16, equation 10.

    Raises:
        ValueError: `trials` is 0 or less than `successes`.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} of {trials} is no proportion")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, weight = successes / trials, z**2 / trials
    middle = (rate + weight / 2) / (1 + weight)
    reach = z * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials)) / (1 + weight)
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    return Interval(
        min(low, _least_rate(successes, trials, confidence)),
        max(high, 1.0 - _least_rate(trials - successes, trials, confidence)),
    )


def _least_rate(successes: int, trials: int, confidence: float) -> float:
    """The Poisson rate, a trial, that yields so many or more in (1 - confidence) of cases; 1 where it is not needed."""
    if not 1 <= successes <= (2 if trials <= 50 else 3):
        return 1.0
    from scipy.special import gammaincinv

    return float(gammaincinv(successes, 1 - confidence)) / trials


def newcombe_interval(first: tuple[int, int], second: tuple[int, int], confidence: float = CONFIDENCE) -> Interval:
    """Hybrid score interval of p1 - p2, each given as successes and trials, from the Wilson intervals of both.

    [d - sqrt((p1 - low1)^2 + (high2 - p2)^2), d + sqrt((high1 - p1)^2 + (p2 - low2)^2)] with d = p1 - p2. The two are
    taken to be independent. Source: Newcombe 1998, Stat. Med. 17 (method 10).
    """
    p, q = (successes / trials for successes, trials in (first, second))
    one, two = (wilson_interval(*counts, confidence) for counts in (first, second))
    low, high = math.hypot(p - one.low, two.high - q), math.hypot(one.high - p, q - two.low)
    return Interval(p - q - low, p - q + high)


def sign_flip_test(values: Sequence[float]) -> float | None:
    """Two-sided p-value of whether independent values are 0 on average, from all ways to flip their signs; of more than
    `ALL_FLIPS` values from 9,999 ways drawn at random, so that 0.0002 is the least.

    Exact where a value and its negative are equally likely when there is no effect, whatever the values are
    distributed like. None where no outcome could reach `LEVEL`: fewer than six values. Source: Fisher 1935, The Design
    of Experiments, section 21.
    """
    from scipy.stats import permutation_test

    if 2 * 0.5 ** len(values) >= LEVEL:
        return None
    if len(values) <= ALL_FLIPS:
        return _all_flips(values)
    found = permutation_test((np.asarray(values),), np.mean, permutation_type="samples", vectorized=True, rng=0)
    return float(found.pvalue)


def _all_flips(values: Sequence[float]) -> float:
    """The share of all ways whose sum is as far from 0 as the values' own."""
    # Every way and its opposite are equally far, so the first sign stays. Scipy goes through ways one by one: seconds.
    sums = np.asarray(values[:1], dtype=np.float64)
    for value in values[1:]:
        sums = np.concatenate((sums + value, sums - value))
    # Equal sums differ in their last digits by the order in which they were added.
    near = 1e-12 * math.fsum(map(abs, values))
    return float(np.mean(np.abs(sums) >= abs(math.fsum(values)) - near))


def equivalence(differences: Sequence[float], margin: float) -> float | None:
    """P-value of two one-sided sign tests: whether the median of paired differences lies within the margin.

    Exact whatever they are distributed like. A test of the mean is not: where one training in seven loses much and the
    others nothing, ten seeds often hold none that does. None where no outcome could reach `LEVEL`: fewer than five
    differences. Sources: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, of the two one-sided tests; Dixon and Mood
    1946, J. Am. Stat. Assoc. 41, of the sign test.

    Raises:
        ValueError: the margin is not positive.
    """
    from scipy.stats import binom

    if margin <= 0:
        raise ValueError(f"the margin must be positive, got {margin}")
    count = len(differences)
    if 0.5**count >= LEVEL:
        return None
    # Exactly the margin is not within it, whatever the last digits of a difference are: 0.94 - 0.93 is less than 0.01.
    inside = margin - 1e-12
    fewer = min(sum(each > -inside for each in differences), sum(each < inside for each in differences))
    return float(binom.sf(fewer - 1, count, 0.5))


def variance_shares(
    rows: Sequence[Mapping[str, Hashable]], values: Sequence[float], parents: Mapping[str, str] | None = None
) -> list[Share]:
    """Main-effect eta squared of every axis: between-group sum of squares / total sum of squares.

    An axis that exists only under some values of another one, its parent, is judged within it, over the values it
    applies to: (SS(parent x axis) - SS(parent)) / (SS(total) - SS(parent)). Else it would get what its parent does.

    Descriptive. On a balanced grid (`balanced_core`) main effects are orthogonal, so the shares add up to at most 1 and
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
    if not members:
        return None
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


def balanced_core(rows: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """Indices of the rows that are left when, as long as some combination of values is missing, the value is left out
    that lacks most of its combinations with the others. Every combination of what is left is there, once.

    Args:
        rows: by axis, its value; the same axes in each, no two rows alike.
    """
    left = list(range(len(rows)))
    while left:
        members: dict[tuple[str, Hashable], int] = Counter(item for index in left for item in rows[index].items())
        levels = Counter(axis for axis, _ in members)
        combinations = math.prod(levels.values())
        if len(left) == combinations:
            break
        emptiest = min(members, key=lambda item: (members[item] * levels[item[0]], str(item)))
        left = [index for index in left if rows[index][emptiest[0]] != emptiest[1]]
    return left


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

    if not 0 <= auc <= 1 or min(poisoned, baselines) < 1:
        raise ValueError(f"no interval for an area of {auc} over {poisoned} poisoned models and {baselines} baselines")
    mean_size = (poisoned + baselines) / 2 - 1
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def beyond(area: float) -> float:
        spread = 1 + mean_size * ((1 - area) / (2 - area) + area / (1 + area))
        return (auc - area) ** 2 - z**2 * area * (1 - area) * spread / (poisoned * baselines)

    # Exactly 0 and 1 are roots that say nothing: there V is 0. Of many models the root that counts may lie as near.
    edge = 1e-9
    inside = min(max(auc, edge), 1 - edge)
    low = float(brentq(beyond, edge, inside)) if inside > edge and beyond(edge) > 0 else 0.0
    high = float(brentq(beyond, inside, 1 - edge)) if inside < 1 - edge and beyond(1 - edge) > 0 else 1.0
    return Interval(low, high)
