"""Coverage, type I error and power of what a report prints, by simulation: `python -m benchmarks.statistics [RUNS]`.

Prints the tables of `docs/statistics.md`. Rates over seeds are normal on the logit scale and counted over test images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import binomtest

from bdray.report.cells import Estimate, make_estimate, seed_means
from bdray.report.retraining import difference_interval, verdict
from bdray.report.statistics import Interval, equivalence, holm, mean_test, rate_interval, t_interval

Floats = np.ndarray[Any, np.dtype[np.float64]]

SEEDS = (2, 3, 5, 10)
IMAGES = 1000
RUNS = 2000


def coverage(runs: int = RUNS) -> list[list[str]]:
    """How often a 95 % interval of a rate holds what it is meant to hold."""
    methods: dict[str, Callable[[list[float]], Interval | None]] = {
        "logit t": lambda rates: rate_interval(rates, [IMAGES] * len(rates)),
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
                rows.append([f"{typical}, {mean:.3f}, {spread}", name, what, *(_percent(hit[k]) for hit in hits)])
    return rows


def _rates(center: float, spread: float, seeds: int, runs: int) -> Floats:
    generator = np.random.default_rng(seeds)
    rates: Floats = generator.binomial(IMAGES, expit(generator.normal(center, spread, (runs, seeds)))) / IMAGES
    return rates


def _held(method: Callable[[list[float]], Interval | None], rates: Floats, truths: Sequence[float]) -> list[float]:
    found = [method([float(rate) for rate in run]) for run in rates]
    return [sum(each is not None and each.low <= truth <= each.high for each in found) / len(rates) for truth in truths]


def _bootstrap(values: list[float]) -> Interval:
    drawn = np.random.default_rng(0).choice(values, (499, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(low), float(high))


def verdicts(runs: int = RUNS) -> list[list[str]]:
    """How often a backdoor is said to work, and not to, by how far it truly is above a floor of 5 %."""
    rows = []
    for above in (0.0, 0.05, 0.15, 0.3, 0.8):
        for seeds in (1, *SEEDS):
            found = _verdicts(above, seeds, runs)
            shares = [_percent(found.count(name) / runs) for name in ("works", "does not", "undecided")]
            rows.append([f"{100 * above:g}", str(seeds), *shares])
    return rows


def _verdicts(above: float, seeds: int, runs: int) -> list[str | None]:
    """Seeds spread by 3 points around a known difference."""
    generator = np.random.default_rng(seeds)
    floors = np.clip(generator.normal(0.05, 0.01, (runs, seeds)), 0, 1)
    rates = np.clip(floors + above + generator.normal(0, 0.03 if above else 0.0, (runs, seeds)), 0, 1)
    mine, its = generator.binomial(IMAGES, rates), generator.binomial(IMAGES, floors)
    return [verdict(_left(*pair)) for pair in zip(mine, its, strict=True)]


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
            cells = effect + luck + generator.normal(0, 0.05, (runs, 12, seeds))
            by_seed = [mean_test(seed_means([dict(enumerate(map(float, cell))) for cell in run])) for run in cells]
            tested = np.mean([p is not None and p < 0.05 for p in by_seed])
            signs = np.mean([binomtest(int((run < 0).sum()), run.size).pvalue < 0.05 for run in cells])
            rows.append([f"{100 * effect:g}", str(seeds), _percent(float(tested)), _percent(float(signs))])
    return rows


def equivalences(runs: int = RUNS) -> list[list[str]]:
    """How often a cell is said to be equivalent within 1 point, of 12 cells (Holm); seeds differ by 0.3 points."""
    rows = []
    for difference in (0.0, -0.005, -0.01):
        for seeds in SEEDS:
            generator = np.random.default_rng(seeds)
            # 12 tests a run say as much with fewer runs.
            drawn = generator.normal(difference, 0.003, (runs // 4, 12, seeds))
            tests = [[equivalence([float(v) for v in cell], 0.01) for cell in run] for run in drawn]
            corrected = np.array([holm([test.p_value if test else 1.0 for test in run]) for run in tests])
            each, some = float((corrected < 0.05).mean()), float((corrected < 0.05).any(axis=1).mean())
            rows.append([f"{100 * difference:g}", str(seeds), _percent(each), _percent(some)])
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


TABLES: tuple[tuple[Sequence[str], Callable[[int], list[list[str]]]], ...] = (
    (("median, mean, spread", "interval", "of the", *(f"{n} seeds" for n in SEEDS)), coverage),
    (("points above the floor", "seeds", "works", "does not", "undecided"), verdicts),
    (("true effect, points", "seeds", "test over seeds", "sign test over cells x seeds"), regularizers),
    (("true difference, points", "seeds", "a cell found equivalent", "some cell of 12"), equivalences),
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    for head, simulate in TABLES:
        print(table(head, simulate(runs)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
