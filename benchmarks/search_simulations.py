"""What stopping rules of searches do to their intervals: the tables of `docs/search-methods.md`.

python -m benchmarks.search_simulations
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, t

from bdray.searches.crossing import Level

SAMPLES = 20_000
SPREADS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.15)
CURVES, MOST_TRIALS, LEVEL = 200, 24, 0.5

Curve = Callable[[float], float]


def coverage_after_stopping(spread: float, confidence: float, half_width: float = 0.05, most: int = 12) -> float:
    """How often Student's interval holds the mean of normal values, at the first of 3 to `most` values at which it is
    no wider than `half_width` to a side.

    Args:
        spread: standard deviation of a value.
        confidence: of the interval, which decides when to stop too.
    """
    values = np.random.default_rng(0).normal(0.0, spread, (SAMPLES, most))
    n = np.arange(1, most + 1)
    means = np.cumsum(values, axis=1) / n
    squares = np.cumsum(values**2, axis=1) - n * means**2
    deviations = np.sqrt(np.maximum(squares / np.maximum(n - 1, 1), 0.0))
    quantiles = np.array([math.nan, *(float(t.ppf((1 + confidence) / 2, k - 1)) for k in n[1:])])
    widths = quantiles * deviations / np.sqrt(n)
    narrow = (widths <= half_width) & (n >= 3)
    stopped = np.where(narrow.any(axis=1), narrow.argmax(axis=1), most - 1)
    each = np.arange(SAMPLES)
    return float((np.abs(means[each, stopped]) <= widths[each, stopped]).mean())


def boundary_row(random: np.random.Generator, noise: float, within: float) -> tuple[float, float]:
    """How often boundary's interval holds the crossing, and how many trials it takes on average.

    Crossings are spread over 0.002 to 0.16 on a log scale, slopes from 2 to 20 a decade, floors 0 to 0.15, ceilings
    0.75 to 1; logistic, probit and Gompertz curves in turns.

    Args:
        noise: standard deviation of a trial.
        within: the factor between the ends of the interval at which a cell is settled.
    """
    held, trials = 0, 0
    for index in range(CURVES):
        crossing = random.uniform(-2.7, -0.8)
        slope = math.exp(random.uniform(math.log(2), math.log(20)))
        curve = _curve(index % 3, crossing, slope, random.uniform(0, 0.15), random.uniform(0.75, 1))
        posterior = Level(-3.0, math.log10(0.3), LEVEL)
        for trial in range(MOST_TRIALS):
            place = posterior.looks(trial)[0]
            posterior.observe(place, float(np.clip(curve(place) + random.normal(0, noise), 0, 1)))
            found = posterior.crossing()
            trials += 1
            if trial >= 3 and found.high - found.low <= math.log10(within):
                break
        held += found.low <= crossing <= found.high
    return held / CURVES, trials / CURVES


def _curve(kind: int, crossing: float, slope: float, floor: float, ceiling: float) -> Curve:
    """A curve from `floor` to `ceiling` that crosses `LEVEL` at `crossing`."""
    shapes: tuple[Curve, ...] = (
        lambda z: 1 / (1 + math.exp(-slope * z)),
        lambda z: float(norm.cdf(slope * z / 1.702)),
        lambda z: math.exp(-math.exp(-0.8 * slope * z)),
    )
    shape = shapes[kind]

    def rate(z: float) -> float:
        return floor + (ceiling - floor) * shape(z)

    shift = float(brentq(lambda z: rate(z) - LEVEL, -20, 20))
    return lambda place: rate(place - crossing + shift)


def main() -> None:
    """Print both tables."""
    print("coverage of Student's interval after stopping, min 3, max 12, half_width 0.05")
    print("| confidence | " + " | ".join(f"spread {spread:g}" for spread in SPREADS) + " |")
    for confidence in (0.95, 0.975):
        covered = (f"{coverage_after_stopping(spread, confidence):.1%}" for spread in SPREADS)
        print(f"| {confidence:.1%} | " + " | ".join(covered) + " |")
    print("boundary")
    print("| spread of a trial | within | interval holds the truth | trials on average |")
    random = np.random.default_rng(0)
    for noise in (0.03, 0.08):
        for within in (1.5, 2.0):
            held, trials = boundary_row(random, noise, within)
            print(f"| {noise:g} | {within:g} | {held:.1%} | {trials:.1f} |", flush=True)


if __name__ == "__main__":
    main()
