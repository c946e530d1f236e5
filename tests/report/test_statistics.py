from __future__ import annotations

import itertools
import math
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from bdray.report.cells import seed_means
from bdray.report.statistics import (
    auc_interval,
    detector_auc,
    equivalence,
    holm,
    is_balanced,
    mean_test,
    newcombe_interval,
    parents_of,
    rate_interval,
    t_interval,
    variance_shares,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (323, 359), (1, 10000)])
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


def test_wilson_interval_solves_the_score_equation() -> None:
    found = wilson_interval(7, 20)
    for end in (found.low, found.high):
        assert abs(7 / 20 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 20))


@pytest.mark.parametrize("values", [[0.01, -0.03], [0.2, 0.5, 0.6, 0.9], [0.001, 0.002, -0.004, 0.01, 0.02]])
def test_t_interval_agrees_with_statsmodels(values: list[float]) -> None:
    found = t_interval(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean(), rel=1e-9)


def test_rate_interval_is_students_on_the_logit_scale() -> None:
    rates = [0.2, 0.5, 0.6, 0.9]
    low, high = DescrStatsW([math.log(p / (1 - p)) for p in rates]).tconfint_mean()
    found = rate_interval(rates, [1000] * 4)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((1 / (1 + math.exp(-low)), 1 / (1 + math.exp(-high))), rel=1e-9)


def test_rates_of_none_and_of_all_lie_half_an_image_from_there() -> None:
    found, expected = rate_interval([0.0, 0.3, 1.0], [50] * 3), rate_interval([0.01, 0.3, 0.99], [50] * 3)
    assert found is not None
    assert found == expected
    assert 0 < found.low < found.high < 1


def test_seeds_that_agree_still_differ_by_counting() -> None:
    found = rate_interval([0.4, 0.4, 0.4], [1000] * 3)
    assert found is not None
    reach = 1.959963984540054 * math.sqrt(1 / (1000 * 0.4 * 0.6)) / math.sqrt(3)
    middle = math.log(0.4 / 0.6)
    assert math.log(found.low / (1 - found.low)) == pytest.approx(middle - reach)
    assert math.log(found.high / (1 - found.high)) == pytest.approx(middle + reach)
    perfect = rate_interval([1.0, 1.0], [1000] * 2)
    assert perfect is not None
    assert 0.99 < perfect.low < 0.9995 < perfect.high < 1
    assert t_interval([0.4, 0.4]) is None
    assert t_interval([0.4]) is None
    assert rate_interval([0.4], [1000]) is None


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_rates_cover_what_they_say(seeds: int) -> None:
    """Truth known: normal on the logit scale, typical rate 0.119, counted over 1000 images."""
    generator = np.random.default_rng(seeds)
    covered = 0
    for logits in generator.normal(-2.0, 1.0, (2000, seeds)):
        rates = generator.binomial(1000, 1 / (1 + np.exp(-logits))) / 1000
        found = rate_interval(list(rates), [1000] * seeds)
        covered += found is not None and found.low <= 1 / (1 + math.exp(2.0)) <= found.high
    # Three standard errors of 2000 runs are 1.5 points.
    assert 0.935 <= covered / 2000 <= 0.965


@pytest.mark.parametrize("differences", [[0.001, -0.002, 0.003], [0.02, 0.03, 0.01, 0.02], [-0.004, 0.009]])
def test_equivalence_agrees_with_statsmodels(differences: list[float]) -> None:
    found = equivalence(differences, 0.01)
    assert found is not None
    p_value, _, _ = DescrStatsW(differences).ttost_mean(-0.01, 0.01)
    assert found.p_value == pytest.approx(p_value, rel=1e-9)
    assert found.mean == pytest.approx(fmean(differences))


def test_equivalence_by_hand() -> None:
    # One degree of freedom: Student's t is Cauchy's, P(T > t) = 1/2 - arctan(t) / pi.
    differences = [0.0, 0.004]
    found = equivalence(differences, 0.01)
    assert found is not None
    t = (0.01 - 0.002) / (stdev(differences) / math.sqrt(2))
    assert found.p_value == pytest.approx(0.5 - math.atan(t) / math.pi)


def test_equivalence_needs_a_spread_and_a_margin() -> None:
    assert equivalence([0.001], 0.01) is None
    assert equivalence([0.001, 0.001], 0.01) is None
    with pytest.raises(ValueError, match="margin"):
        equivalence([0.1, 0.2], 0.0)


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


def test_variance_shares_leave_out_what_says_nothing() -> None:
    rows = [{"one": 0, "each": k, "two": k % 2} for k in range(4)]
    assert [share.axis for share in variance_shares(rows, [0.1, 0.2, 0.3, 0.5])] == ["two"]
    assert variance_shares(rows, [0.3] * 4) == []
    assert variance_shares([], []) == []


def test_balance() -> None:
    grid = [{"a": a, "b": b} for a in (0, 1) for b in (0, 1, 2)]
    assert is_balanced(grid)
    assert is_balanced(grid * 2)
    assert not is_balanced(grid[:-1])
    assert not is_balanced([*grid, grid[0]])
    assert not is_balanced([])


def test_holm_agrees_with_statsmodels() -> None:
    p_values = [0.04, 0.001, 0.03, 0.5, 0.03]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


@pytest.mark.parametrize("values", [[0.01, -0.03], [0.2, 0.5, 0.6, 0.9], [-0.1, -0.2, -0.15, 0.01, -0.3]])
def test_mean_test_agrees_with_statsmodels(values: list[float]) -> None:
    assert mean_test(values) == pytest.approx(DescrStatsW(values).ttest_mean(0.0)[1], rel=1e-9)


def test_mean_test_needs_a_spread() -> None:
    assert mean_test([0.2]) is None
    assert mean_test([0.2, 0.2, 0.2]) is None


def test_the_test_over_seeds_holds_its_level_where_cells_share_their_seeds() -> None:
    """No effect at all: 12 cells whose differences share the luck of their seed, five seeds."""
    generator = np.random.default_rng(11)
    runs, over_seeds, over_pairs = 2000, 0, 0
    for _ in range(runs):
        luck = generator.normal(0, 0.05, 5)
        cells = luck + generator.normal(0, 0.05, (12, 5))
        p_value = mean_test(seed_means([dict(enumerate(map(float, cell))) for cell in cells]))
        over_seeds += p_value is not None and p_value < 0.05
        over_pairs += binomtest(int((cells < 0).sum()), cells.size).pvalue < 0.05
    assert 0.03 <= over_seeds / runs <= 0.07
    # What a sign test over cells x seeds makes of it.
    assert over_pairs / runs > 0.2


def test_a_seed_is_averaged_over_cells_that_have_every_seed() -> None:
    assert seed_means([{0: 0.1, 1: 0.5}, {1: 0.1, 0: 0.3}, {1: 0.9}]) == pytest.approx([0.2, 0.3])
    assert seed_means([{0: 0.1}, {1: 0.2}]) == []
    assert seed_means([]) == []


def test_detector_auc_agrees_with_scikit_learn() -> None:
    poisoned, baselines = [0.7, 0.8, 0.8, 0.9], [0.8, 0.85, 0.95]
    expected = roc_auc_score([1] * 4 + [0] * 3, [-value for value in poisoned + baselines])
    assert detector_auc([(poisoned, baselines)]) == pytest.approx(expected)


def test_detector_auc_compares_within_strata_only() -> None:
    assert detector_auc([([0.5], [0.4]), ([0.9], [0.8])]) == 0.0
    assert detector_auc([([], [0.4])]) is None


def hanley_mcneil(area: float, m: int, n: int) -> float:
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
