from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, chi2
from sklearn.metrics import roc_auc_score
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from bdray.results.statistics import (
    auc_interval,
    balanced_core,
    detector_auc,
    equivalence,
    holm,
    newcombe_interval,
    parents_of,
    sign_flip_test,
    variance_shares,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (323, 359), (4, 10000)])
def test_wilson_interval_agrees_with_statsmodels(successes: int, trials: int) -> None:
    found = wilson_interval(successes, trials)
    expected = proportion_confint(successes, trials, alpha=0.05, method="wilson")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("first", "second"), [((56, 70), (48, 80)), ((0, 10), (0, 20)), ((10, 10), (0, 20)), ((9981, 10000), (412, 9000))]
)
def test_newcombe_interval_agrees_with_statsmodels(first: tuple[int, int], second: tuple[int, int]) -> None:
    found = newcombe_interval(first, second)
    expected = confint_proportions_2indep(*first, *second, method="newcomb", compare="diff")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)


def test_newcombe_interval_is_that_of_the_paper() -> None:
    # Newcombe 1998, table II, method 10: 56/70 - 48/80.
    found = newcombe_interval((56, 70), (48, 80))
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)


@pytest.mark.parametrize("trials", [20, 100, 1000])
def test_wilson_interval_holds_small_rates_too(trials: int) -> None:
    """Coverage, exact. Wilson's own falls to 84 % just below the far end of one success's interval."""
    counts, highest = np.arange(trials + 1), 3 if trials > 50 else 2
    found = [wilson_interval(int(k), trials) for k in counts]
    low, high = np.array([each.low for each in found]), np.array([each.high for each in found])
    for rate in np.concatenate([np.geomspace(1e-5, 0.5, 300), low[1 : highest + 1] * (1 - 1e-9)]):
        holds = (low <= rate) & (rate <= high)
        assert binom.pmf(counts, trials, rate)[holds].sum() >= 0.915
        assert binom.pmf(counts, trials, 1 - rate)[(low <= 1 - rate) & (1 - rate <= high)].sum() >= 0.915
    assert low[1] == pytest.approx(-math.log(0.95) / trials), "Brown, Cai and DasGupta's by hand"
    assert low[2] == pytest.approx(chi2.ppf(0.05, 4) / 2 / trials)
    assert high[trials - 1] == pytest.approx(1 - low[1])


def test_wilson_interval_solves_the_score_equation() -> None:
    found = wilson_interval(7, 20)
    for end in (found.low, found.high):
        assert abs(7 / 20 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 20))


VALUES = [-0.1, 0.05, 0.02, 0.1, 0.3, 0.0]


def by_hand(values: list[float], beyond: Callable[[float], bool]) -> float:
    """The share of all ways to flip signs whose mean is beyond."""
    ways = list(itertools.product((-1, 1), repeat=len(values)))
    return sum(beyond(fmean(s * v for s, v in zip(signs, values, strict=True))) for signs in ways) / len(ways)


def test_the_sign_flip_test_counts_all_ways() -> None:
    mean = fmean(VALUES)
    assert sign_flip_test(VALUES) == pytest.approx(by_hand(VALUES, lambda found: abs(found) >= mean - 1e-12))
    assert sign_flip_test([0.1] * 6) == pytest.approx(2 / 64)
    assert sign_flip_test([0.0] * 6) == 1


def test_the_sign_flip_test_is_exact_up_to_twenty_seeds() -> None:
    """Found: from 14 on it was a sample of 9,999 ways, which no p-value below 0.0002 can come of."""
    assert sign_flip_test([1.0] * 20) == 2 / 2**20
    assert sign_flip_test([0.1, *[0.3] * 13]) == 2 / 2**14
    # Of k values of one size, so many positive: the sum is as far from 0 as that of a binomial distribution.
    assert sign_flip_test([0.1] * 15 + [-0.1] * 3) == pytest.approx(2 * binom.cdf(3, 18, 0.5))
    sampled = sign_flip_test([0.1] * 21)
    assert sampled == pytest.approx(2 / 10_000)


def test_too_few_values_cannot_say() -> None:
    assert sign_flip_test([0.1] * 5) is None
    assert equivalence([0.001] * 4, 0.01) is None
    with pytest.raises(ValueError, match="margin"):
        equivalence([0.1, 0.2], 0.0)


def test_equivalence_is_the_worse_of_two_sign_tests() -> None:
    within = [0.004, -0.002, 0.001, 0.003, 0.0, 0.009]
    assert equivalence(within, 0.01) == pytest.approx(1 / 64), "all six on the right side of both ends"
    lost = [-0.08, -0.09, *within]
    assert equivalence(lost, 0.01) == pytest.approx((1 + 8 + 28) / 256), "six of eight above the lower end"
    gained = [0.05, 0.01, *within]
    assert equivalence(gained, 0.01) == equivalence(lost, 0.01), "at the end is outside"
    a_point_less = [count / 1000 - (count + 10) / 1000 for count in range(926, 934)]
    assert equivalence(a_point_less, 0.01) == 1, "Found: 6 of these 8 were within, by the last digits of a difference"


def test_equivalence_holds_its_level_however_differences_lie() -> None:
    """One training in seven loses 8 points, and the median is at the margin: a test of the mean finds it in one of
    five runs of ten seeds."""
    random = np.random.default_rng(0)
    drawn = np.where(random.random((4000, 10)) < 0.15, -0.08, 0.0) - 0.01 + random.normal(0, 1e-4, (4000, 10))
    median = np.median(drawn)
    found = [p for run in drawn - median - 0.01 if (p := equivalence(list(run), 0.01)) is not None]
    assert np.mean(np.array(found) < 0.05) <= 0.05


def test_variance_shares_by_hand() -> None:
    rows = [{"trigger": t, "rate": r} for t in ("patch", "blend") for r in (1, 2)]
    # Grand mean 4; trigger means 2 and 6: 4 * 2^2 = 16; rate means 3 and 5: 4 * 1^2 = 4; no interaction: total 20.
    shares = variance_shares(rows, [1.0, 3.0, 5.0, 7.0])
    assert [(s.axis, s.levels) for s in shares] == [("trigger", 2), ("rate", 2)]
    assert [s.share for s in shares] == pytest.approx([0.8, 0.2])
    assert [s.by_chance for s in shares] == pytest.approx([1 / 3, 1 / 3])


def test_variance_shares_agree_with_an_analysis_of_variance() -> None:
    generator = np.random.default_rng(7)
    rows = [{"a": a, "b": b, "c": c} for a, b, c in itertools.product("xyz", "uv", "klmn")]
    values = [float(v) for v in generator.uniform(size=len(rows))]
    table = anova_lm(ols("value ~ C(a) + C(b) + C(c)", pd.DataFrame(rows).assign(value=values)).fit())
    total = table["sum_sq"].sum()
    for share in variance_shares(rows, values):
        assert share.share == pytest.approx(table.loc[f"C({share.axis})", "sum_sq"] / total)


def nested_rows() -> list[dict[str, str | None]]:
    sizes: dict[str, tuple[str | None, ...]] = {"patch": ("3", "5"), "text": ("8", "12", "16"), "blend": (None,)}
    return [
        {"trigger.name": name, "trigger.size": size, "poison.rate": rate}
        for name, each in sizes.items()
        for size in each
        for rate in ("1", "2", "3")
    ]


def test_a_nested_axis_does_not_get_what_its_parent_does() -> None:
    rows = nested_rows()
    assert parents_of(rows) == {"trigger.size": "trigger.name"}
    # Size does nothing, the trigger all but everything.
    level = {"patch": 0.9, "text": 0.5, "blend": 0.1}
    values = [level[str(row["trigger.name"])] + 0.01 * int(str(row["poison.rate"])) for row in rows]
    shares = {share.axis: share for share in variance_shares(rows, values, parents_of(rows))}
    assert shares["trigger.name"].share > 0.99
    assert shares["trigger.size"].share == pytest.approx(0, abs=1e-12)
    assert (shares["trigger.size"].levels, shares["trigger.size"].parent) == (5, "trigger.name")
    taken_alone = {share.axis: share.share for share in variance_shares(rows, values)}
    assert taken_alone["trigger.size"] > 0.99


def test_a_nested_share_agrees_with_an_analysis_of_variance() -> None:
    rows = nested_rows()
    values = [float(v) for v in np.random.default_rng(3).uniform(size=len(rows))]
    table = pd.DataFrame([{"p": row["trigger.name"], "s": row["trigger.size"]} for row in rows]).assign(value=values)
    table = table[table["s"].notna()]
    parent, both = (ols(formula, table).fit().ssr for formula in ("value ~ C(p)", "value ~ C(s)"))
    share = next(each for each in variance_shares(rows, values, parents_of(rows)) if each.axis == "trigger.size")
    # Sizes of one trigger are no other's, so a size says the trigger too.
    assert share.share == pytest.approx((parent - both) / parent)
    assert share.by_chance == pytest.approx((5 - 2) / (15 - 2))


def test_a_nested_share_by_chance_is_the_mean_over_all_permutations_within_the_parent() -> None:
    rows = [{"t.name": "a", "t.x": x} for x in "uuvvw"] + [{"t.name": "b", "t.x": None}] * 2
    values = (0.1, 0.9, 0.4, 0.3, 0.8)
    found = [
        next(share for share in variance_shares(rows, [*order, 0.0, 0.9], {"t.x": "t.name"}) if share.axis == "t.x")
        for order in itertools.permutations(values)
    ]
    assert fmean(share.share for share in found) == pytest.approx(found[0].by_chance)


def test_parents() -> None:
    crossed = [{"a.name": a, "a.x": x, "b.y": y} for a in "pq" for x in "12" for y in "34"]
    assert parents_of(crossed) == {}
    # Applies everywhere, with other values under each.
    other = [{"a.name": a, "a.x": x, "b.y": y} for a, xs in (("p", "12"), ("q", "34")) for x in xs for y in "56"]
    assert parents_of(other) == {"a.x": "a.name"}
    # What a parameter of a strategy decides, its name does not.
    chain = [
        {"s.strategy": s, "s.kind": kind, "s.epsilon": e, "s.rate": rate}
        for s, kind, e in (("a", None, None), ("c", "none", None), ("c", "pgd", "4"), ("c", "pgd", "8"))
        for rate in "12"
    ]
    assert parents_of(chain) == {"s.kind": "s.strategy", "s.epsilon": "s.kind"}
    assert parents_of([]) == {}


def test_share_by_chance_is_the_mean_over_all_permutations() -> None:
    rows = [{"a": letter} for letter in "xxyyz"]
    values = [0.1, 0.9, 0.4, 0.3, 0.8]
    shares = [variance_shares(rows, order)[0].share for order in itertools.permutations(values)]
    assert fmean(shares) == pytest.approx(variance_shares(rows, values)[0].by_chance)


def test_an_axis_that_applies_to_no_row_has_no_share() -> None:
    """Found: the cells that had it were failed or collapsed, and no page was made of the others."""
    rows: list[dict[str, str | None]] = [{"trigger.name": name, "trigger.size": None} for name in "aabb"]
    (share,) = variance_shares(rows, [0.1, 0.2, 0.8, 0.9], parents_of(rows))
    assert share.axis == "trigger.name"


def test_variance_shares_leave_out_what_says_nothing() -> None:
    rows = [{"one": 0, "each": k, "two": k % 2} for k in range(4)]
    assert [share.axis for share in variance_shares(rows, [0.1, 0.2, 0.3, 0.5])] == ["two"]
    assert variance_shares(rows, [0.3] * 4) == []
    assert variance_shares([], []) == []


def test_the_balanced_core() -> None:
    grid: list[dict[str, object]] = [{"a": a, "b": b} for a in (0, 1) for b in (0, 1, 2)]
    assert balanced_core(grid) == list(range(6))
    assert balanced_core(grid[:-1]) == [0, 1, 3, 4], "without b = 2"
    assert balanced_core([*grid, {"a": 2, "b": 0}]) == list(range(6))
    assert balanced_core([]) == []


@pytest.mark.parametrize("seed", range(4))
def test_the_core_of_a_design_with_extra_arms_is_the_largest(seed: int) -> None:
    """As in a search space: a grid of two axes, and for one value of the first some others of a third."""
    generator = np.random.default_rng(seed)
    size = int(generator.integers(3, 7))
    rows = [{"a": a, "b": b, "c": 0} for a in range(size) for b in range(2)]
    rows += [{"a": 0, "b": b, "c": c} for b in range(2) for c in range(1, int(generator.integers(2, 4)))]
    found = [rows[index] for index in balanced_core([rows[k] for k in generator.permutation(len(rows))])]
    assert len(found) == 2 * size


def test_holm_agrees_with_statsmodels() -> None:
    p_values = [0.04, 0.001, 0.03, 0.5, 0.03]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_detector_auc_agrees_with_scikit_learn() -> None:
    poisoned, baselines = [0.7, 0.8, 0.8, 0.9], [0.8, 0.85, 0.95]
    expected = roc_auc_score([1] * 4 + [0] * 3, [-value for value in poisoned + baselines])
    assert detector_auc([(poisoned, baselines)]) == pytest.approx(expected)


def test_detector_auc_compares_within_strata_only() -> None:
    assert detector_auc([([0.5], [0.4]), ([0.9], [0.8])]) == 0.0
    assert detector_auc([([], [0.4])]) is None


def hanley_mcneil(area: NDArray[np.float64], m: int, n: int) -> NDArray[np.float64]:
    """Variance, by their formula 2."""
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    return (area * (1 - area) + (m - 1) * (first - area**2) + (n - 1) * (second - area**2)) / (m * n)


@pytest.mark.parametrize(("auc", "size"), [(0.5, 3), (0.8, 5), (0.02, 10), (0.97, 2), (1.0, 3), (0.0, 4)])
def test_the_interval_of_an_auc_is_all_areas_that_are_near_enough(auc: float, size: int) -> None:
    areas = np.linspace(1e-6, 1 - 1e-6, 1_000_001)
    # Of equal groups Newcombe's variance is Hanley's and McNeil's.
    near = areas[np.abs(areas - auc) <= 1.959964 * np.sqrt(hanley_mcneil(areas, size, size))]
    found = auc_interval(auc, size, size)
    ends = near.min() if auc else 0.0, near.max() if auc < 1 else 1.0
    assert (found.low, found.high) == pytest.approx(ends, abs=2e-6)


def test_the_interval_of_an_auc_mirrors_and_narrows() -> None:
    one, other = auc_interval(0.9, 4, 9), auc_interval(0.1, 9, 4)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))
    assert auc_interval(0.9, 8, 9).low > one.low
    with pytest.raises(ValueError, match="no interval"):
        auc_interval(0.5, 0, 3)


@pytest.mark.parametrize(
    ("auc", "poisoned", "baselines"), [(1 - 1e-7, 2500, 47500), (1 - 1e-8, 500, 9500), (1 - 1 / 900**2, 900, 900)]
)
def test_an_auc_next_to_0_or_1_has_an_interval(auc: float, poisoned: int, baselines: int) -> None:
    """Found: "f(a) and f(b) must have different signs", where of so many pairs one or a few are lost."""
    high, low = auc_interval(auc, poisoned, baselines), auc_interval(1 - auc, baselines, poisoned)
    whole = auc_interval(1.0, poisoned, baselines)
    assert (high.low, high.high) == (pytest.approx(whole.low, abs=1e-5), 1.0)
    assert high.low < auc
    assert (low.low, low.high) == (0.0, pytest.approx(1 - high.low))
