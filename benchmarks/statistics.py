"""Coverage, type I error and power of what a report prints, by simulation: `python -m benchmarks.statistics [RUNS]`.

Prints the tables of `docs/statistics.md`. Rates over seeds are normal on the logit scale and counted over test images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from bdray.report.cells import Estimate, estimate_of_differences, make_estimate, seed_means
from bdray.report.retraining import difference_interval, verdict
from bdray.report.statistics import (
    Interval,
    auc_interval,
    detector_auc,
    equivalence,
    holm,
    mean_test,
    rate_interval,
    t_interval,
    variance_shares,
    wilson_interval,
)

Floats = np.ndarray[Any, np.dtype[np.float64]]

SEEDS = (1, 2, 3, 5, 10)
CELLS = 12
NONE = "none"
"""Where the page gives no interval and makes no test."""
IMAGES = 1000
RUNS = 2000


def coverage(runs: int = RUNS) -> list[list[str]]:
    """How often a 95 % interval of a rate holds what it is meant to hold."""
    methods: dict[str, Callable[[list[float]], Interval | None]] = {
        "as printed": _printed,
        "plain t": t_interval,
        "percentile bootstrap": _bootstrap,
    }
    rows = []
    for typical, spread in ((0.119, 1.0), (0.5, 0.5), (0.95, 0.5)):
        center = float(logit(typical))
        mean = float(np.mean(expit(center + spread * np.random.default_rng(0).normal(size=1_000_000))))
        for name, method in methods.items():
            drawn = [_rates(center, spread, seeds, runs) for seeds in SEEDS]
            hits = [_held(method, rates, (typical, mean)) for rates in drawn]
            for what, k in (("median", 0), ("mean", 1)):
                told = [NONE if hit is None else _percent(hit[k]) for hit in hits]
                rows.append([f"{typical}, {mean:.3f}, {spread}", name, what, *told])
    return rows


def _printed(rates: list[float]) -> Interval | None:
    """Wilson's of one seed, Student's on the logit scale of several."""
    if len(rates) == 1:
        return wilson_interval(round(rates[0] * IMAGES), IMAGES)
    return rate_interval(rates, [IMAGES] * len(rates))


def wilsons(runs: int = RUNS) -> list[list[str]]:
    """How often Wilson's interval over test images holds the rate of the model that was tested on them."""
    rows = []
    for images in (100, 359, 1000, 9000):
        told = []
        for rate in (0.001, 0.02, 0.1, 0.5, 0.95):
            hits = np.random.default_rng(images).binomial(images, rate, runs)
            found = {int(k): wilson_interval(int(k), images) for k in np.unique(hits)}
            told.append(_percent(float(np.mean([found[int(k)].low <= rate <= found[int(k)].high for k in hits]))))
        rows.append([str(images), *told])
    return rows


def differences(runs: int = RUNS) -> list[list[str]]:
    """How often the interval of a difference holds the true one, 5 points; seeds and cells spread by 5 points each."""
    rows = []
    for name, draw in (("normal", _normal), ("skewed (exponential)", _exponential)):
        for cells in (1, CELLS):
            told = []
            for seeds in SEEDS:
                generator = np.random.default_rng(seeds)
                luck = draw(generator, (runs, 1, seeds)) + draw(generator, (runs, cells, seeds))
                found = [estimate_of_differences(_by_seed(run)) for run in 0.05 + 0.05 * luck]
                told.append(_share_held([each for each in found if each], 0.05))
            rows.append([name, str(cells), *told])
    return rows


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return generator.normal(size=shape)


def _exponential(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return generator.exponential(size=shape) - 1


def _by_seed(cells: Floats) -> list[float]:
    return seed_means([dict(enumerate(map(float, cell))) for cell in cells])


def _share_held(found: Sequence[Estimate], truth: float) -> str:
    known = [each for each in found if each.low is not None and each.high is not None]
    held = sum(each.low <= truth <= each.high for each in known if each.low is not None and each.high is not None)
    return _percent(held / len(known)) if known else NONE


def detectors(runs: int = RUNS) -> list[list[str]]:
    """How often an interval of the detector's AUC holds the true one. Cells of a seed share half of their variance,
    with its baseline too or not."""
    rows = []
    for shift, together in ((s, t) for s in (0.0, 0.5, 1.5, 4.0) for t in (False, True)):
        truth = float(norm.cdf(shift / 2**0.5))
        told: dict[str, list[str]] = {name: [NONE] for name in ("as printed", "counting models", "DeLong's")}
        for seeds in SEEDS[1:]:
            generator = np.random.default_rng(seeds)
            luck, other, own = generator.normal(size=(3, runs, seeds)) * 0.5**0.5
            baselines = own + (luck if together else other)
            poisoned = luck[:, None] - shift + 0.5**0.5 * generator.normal(size=(runs, CELLS, seeds))
            found = [_auc_intervals(*run) for run in zip(poisoned, baselines, strict=True)]
            for name, each in zip(told, zip(*found, strict=True), strict=True):
                told[name].append(_percent(sum(one.low <= truth <= one.high for one in each) / runs))
        rows += [[f"{truth:.3f}", "yes" if together else "no", name, *shares] for name, shares in told.items()]
    return rows


def _auc_intervals(poisoned: Floats, baselines: Floats) -> tuple[Interval, Interval, Interval]:
    """Counting seeds, counting models, and DeLong's with models of one seed as one (Obuchowski 1997)."""
    auc, seeds = detector_auc([(poisoned.ravel().tolist(), baselines.tolist())]), len(baselines)
    assert auc is not None
    wins = (poisoned[:, :, None] < baselines) - auc
    by_seed = wins.sum(axis=(0, 2)) + wins.sum(axis=(0, 1))
    error = float(np.sqrt(seeds / (seeds - 1) * (by_seed**2).sum())) / wins.size
    reach = float(student.ppf(0.975, seeds - 1)) * error
    return auc_interval(auc, seeds, seeds), auc_interval(auc, poisoned.size, seeds), Interval(auc - reach, auc + reach)


def shares(runs: int = RUNS) -> list[list[str]]:
    """Mean share of variance (%) that is printed for an axis of four values over 24 cells, by its true share; the luck
    of a seed has a quarter of the variance between cells."""
    grid = [(a, b) for a in range(4) for b in range(6)]
    rows = []
    for truth in (0.0, 0.3, 0.8):
        told = []
        for seeds in SEEDS:
            generator = np.random.default_rng(seeds)
            axis = np.repeat(_standardized(generator.normal(size=(runs // 4, 4))), 6, axis=1)
            rest = generator.normal(size=(runs // 4, 24))
            luck = generator.normal(size=(runs // 4, 24)) * (0.25 / seeds) ** 0.5
            values = truth**0.5 * axis + (1 - truth) ** 0.5 * rest + luck
            found = [variance_shares([{"a": a, "b": b} for a, b in grid], list(map(float, run))) for run in values]
            told.append(_percent(float(np.mean([share.share for run in found for share in run if share.axis == "a"]))))
        rows.append([f"{100 * truth:g}", _percent(3 / 23), *told])
    return rows


def _standardized(values: Floats) -> Floats:
    centered: Floats = values - values.mean(axis=1, keepdims=True)
    scaled: Floats = centered / centered.std(axis=1, keepdims=True)
    return scaled


def _rates(center: float, spread: float, seeds: int, runs: int) -> Floats:
    generator = np.random.default_rng(seeds)
    rates: Floats = generator.binomial(IMAGES, expit(generator.normal(center, spread, (runs, seeds)))) / IMAGES
    return rates


def _held(
    method: Callable[[list[float]], Interval | None], rates: Floats, truths: Sequence[float]
) -> list[float] | None:
    found = [method([float(rate) for rate in run]) for run in rates]
    if not any(found):
        return None
    return [sum(each is not None and each.low <= truth <= each.high for each in found) / len(rates) for truth in truths]


def _bootstrap(values: list[float]) -> Interval | None:
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(0).choice(values, (499, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(low), float(high))


def verdicts(runs: int = RUNS) -> list[list[str]]:
    """How often a backdoor is said to work, and not to, by how far it truly is above a floor of 5 %."""
    rows = []
    for above in (0.0, 0.05, 0.15, 0.3, 0.8):
        for seeds in SEEDS:
            found = _left_over(above, seeds, runs, seeds)
            said = [verdict(each) for each in found]
            told = [_percent(said.count(name) / runs) for name in ("works", "does not", "undecided")]
            rows.append([f"{100 * above:g}", str(seeds), *told, _share_held(found, above)])
    return rows


def woken(runs: int = RUNS) -> list[list[str]]:
    """How often a backdoor is said to have been woken (did not work before, works after), by both true distances."""
    rows = []
    for before, after in ((0.0, 0.0), (0.05, 0.05), (0.0, 0.15), (0.0, 0.8)):
        told = []
        for seeds in SEEDS:
            pairs = zip(
                _left_over(before, seeds, runs, seeds), _left_over(after, seeds, runs, seeds + 100), strict=True
            )
            told.append(_percent(sum(verdict(a) == "does not" and verdict(b) == "works" for a, b in pairs) / runs))
        rows.append([f"{100 * before:g} to {100 * after:g}", *told])
    return rows


def _left_over(above: float, seeds: int, runs: int, stream: int) -> list[Estimate]:
    """Seeds spread by 3 points around a known difference."""
    generator = np.random.default_rng(stream)
    floors = np.clip(generator.normal(0.05, 0.01, (runs, seeds)), 0, 1)
    rates = np.clip(floors + above + generator.normal(0, 0.03 if above else 0.0, (runs, seeds)), 0, 1)
    mine, its = generator.binomial(IMAGES, rates), generator.binomial(IMAGES, floors)
    return [_left(*pair) for pair in zip(mine, its, strict=True)]


def _left(mine: Floats, its: Floats) -> Estimate:
    pairs = [((int(a), IMAGES), (int(b), IMAGES)) for a, b in zip(mine, its, strict=True)]
    differences = [(a[0] - b[0]) / IMAGES for a, b in pairs]
    return make_estimate(differences, *difference_interval(pairs))


def regularizers(runs: int = RUNS) -> list[list[str]]:
    """How often a regularizer is said to have an effect (5 %), over 12 cells that share the luck of their seed."""
    rows = []
    for effect in (0.0, -0.05, -0.1):
        for seeds in SEEDS:
            generator = np.random.default_rng(seeds)
            luck = generator.normal(0, 0.05, (runs, 1, seeds))
            cells = effect + luck + generator.normal(0, 0.05, (runs, CELLS, seeds))
            p_values = [mean_test(_by_seed(run)) for run in cells]
            tested = [p < 0.05 for p in p_values if p is not None]
            signs = np.mean([binomtest(int((run < 0).sum()), run.size).pvalue < 0.05 for run in cells])
            rows.append([f"{100 * effect:g}", str(seeds), _mean_or_none(tested), _percent(float(signs))])
    return rows


def equivalences(runs: int = RUNS) -> list[list[str]]:
    """How often a cell is said to be equivalent within 1 point, of 12 cells (Holm); seeds differ by 0.3 points."""
    rows = []
    for difference in (0.0, -0.005, -0.01):
        for seeds in SEEDS:
            generator = np.random.default_rng(seeds)
            # 12 tests a run say as much with fewer runs.
            drawn = generator.normal(difference, 0.003, (runs // 4, CELLS, seeds))
            tests = [[equivalence([float(v) for v in cell], 0.01) for cell in run] for run in drawn]
            corrected = [holm([test.p_value for test in run if test]) for run in tests]
            each = [p < 0.05 for run in corrected for p in run]
            some = [any(p < 0.05 for p in run) for run in corrected if run]
            rows.append([f"{100 * difference:g}", str(seeds), _mean_or_none(each), _mean_or_none(some)])
    return rows


def _mean_or_none(found: Sequence[bool]) -> str:
    return _percent(float(np.mean(found))) if found else NONE


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


_BY_SEEDS = ("1 seed", *(f"{n} seeds" for n in SEEDS[1:]))
TABLES: tuple[tuple[int, Sequence[str], Callable[[int], list[list[str]]]], ...] = (
    (1, ("images", *(f"rate {rate} %" for rate in (0.1, 2, 10, 50, 95))), wilsons),
    (3, ("median, mean, spread", "interval", "of the", *_BY_SEEDS), coverage),
    (2, ("luck", "cells", *_BY_SEEDS), differences),
    (2, ("points above the floor", "seeds", "works", "does not", "undecided", "interval holds the truth"), verdicts),
    (1, ("points above the floor, before to after", *_BY_SEEDS), woken),
    (2, ("true effect, points", "seeds", "test over seeds", "sign test over cells x seeds"), regularizers),
    (2, ("true difference, points", "seeds", "a cell found equivalent", "some cell of 12"), equivalences),
    (3, ("true AUC", "luck shared with the baseline", "interval", *_BY_SEEDS), detectors),
    (2, ("true share, %", "printed as by chance, %", *_BY_SEEDS), shares),
)
"""How many columns are settings, the head, and what computes the rows."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    for _, head, simulate in TABLES:
        print(table(head, simulate(runs)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
