"""What stopping rules of searches do to their intervals: the tables of `docs/statistics.md` about searches.

python -m benchmarks.search_simulations [RUNS]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from bdray.results.took import took
from bdray.searches.boundary import LEAST, NARROWEST
from bdray.searches.crossing import Level, Posterior, Share
from benchmarks.statistics import table

RUNS, MOST_TRIALS, LEVEL, IMAGES = 400, 20, 0.5, 1000
LOW, HIGH = -3.0, math.log10(0.3)
GENTLE = "slope 4"

TrainingKind = Callable[[float, np.random.Generator], float]
"""The attack success rate of one training at a distance, in decades, from where the crossing is."""


def all_or_nothing(low: float, high: float, slope: float) -> TrainingKind:
    """It ends at `low` or at `high`, by a logistic curve."""
    return lambda z, random: high if random.random() < 1 / (1 + math.exp(-slope * z)) else low


def own_crossings(spread: float) -> TrainingKind:
    """Every seed takes above a crossing of its own; these are normal, `spread` decades wide."""
    return lambda z, random: 0.98 if z > random.normal(0.0, spread) else 0.05


def gradual(noise: float, kind: int = 0, slope: float = 10.0, low: float = 0.05, high: float = 0.98) -> TrainingKind:
    """It scatters around a logistic curve, a probit or Gompertz's."""
    curve = _curve(kind, slope, low, high)
    return lambda z, random: float(np.clip(curve(z) + random.normal(0.0, noise), 0.0, 1.0))


def _curve(kind: int, slope: float, low: float, high: float) -> Callable[[float], float]:
    """A curve from `low` to `high` that has `LEVEL` at 0."""
    shape: Callable[[float], float] = (
        lambda z: 1 / (1 + math.exp(-slope * z)),
        lambda z: float(norm.cdf(slope * z / 1.702)),
        lambda z: math.exp(-math.exp(-0.8 * slope * z)),
    )[kind]
    shift = float(brentq(lambda z: low + (high - low) * shape(z) - LEVEL, -20, 20))
    return lambda z: low + (high - low) * shape(z + shift)


def located(
    training: TrainingKind, build: Callable[[], Posterior], within: float, runs: int, took_at: float = 0.5
) -> list[str]:
    """How often the interval holds the crossing (%), trials on average, how often it was as narrow as asked (%), and
    how often it held then.

    Crossings are spread over 0.0025 to 0.126. Each training is counted over `IMAGES` images, its floor of 2.5 % over
    three times as many.
    """
    held, trials, narrow, held_narrow = 0, 0, 0, 0
    for index in range(runs):
        random = np.random.default_rng(index)
        truth = random.uniform(-2.6, -0.9)
        posterior, is_narrow = build(), False
        floor = int(random.binomial(3 * IMAGES, 0.025))
        for trial in range(MOST_TRIALS):
            place = posterior.looks(trial)[0]
            count = int(random.binomial(IMAGES, training(place - truth, random)))
            answer = took(count, IMAGES, floor, 3 * IMAGES, took_at)
            if not isinstance(posterior, Share):
                posterior.observe(place, count / IMAGES)
            elif answer is not None:
                posterior.observe(place, float(answer))
            found = posterior.crossing()
            trials += 1
            is_narrow = found.high - found.low <= math.log10(within)
            if trial + 1 >= LEAST and (is_narrow or max(found.below, found.above) >= 0.95):
                break
        holds = found.low <= truth <= found.high
        held, narrow, held_narrow = held + holds, narrow + is_narrow, held_narrow + (holds and is_narrow)
    among = f"{100 * held_narrow / narrow:.1f}" if narrow else "none"
    return [f"{100 * held / runs:.1f}", f"{trials / runs:.1f}", f"{100 * narrow / runs:.1f}", among]


def shares(runs: int = RUNS) -> list[list[str]]:
    """`metric: took`, 20 trials at most: as narrow as asked by default, and where an edge is gentle narrower."""
    settings: list[tuple[str, str, TrainingKind, float]] = [
        (f"{100 * low:g} or {100 * high:g} %", f"slope {slope:g}", all_or_nothing(low, high, slope), at)
        for low, high, at in ((0.05, 0.98, 0.5), (0.15, 0.98, 0.5), (0.025, 0.99, 0.5), (0.6, 0.999, 0.8))
        for slope in (4.0, 12.0, 40.0)
    ]
    settings += [
        ("each seed a crossing of its own", f"spread {spread:g}", own_crossings(spread), 0.5)
        for spread in (0.03, 0.1, 0.3)
    ]
    settings += [("little by little", f"noise {noise:g}", gradual(noise), 0.5) for noise in (0.03, 0.08)]
    asked = [(*setting, NARROWEST) for setting in settings]
    asked += [(*setting, 3.0) for setting in settings if setting[1] == GENTLE]

    def found(how: str, training: TrainingKind, at: float, within: float) -> list[str]:
        # There few intervals are as narrow as asked.
        times = 5 if how == GENTLE else 1
        return located(training, lambda: Share(LOW, HIGH, LEVEL), within, times * runs, at)

    return [[what, how, f"{within:g}", *found(how, training, at, within)] for what, how, training, at, within in asked]


def levels(runs: int = RUNS) -> list[list[str]]:
    """A named rate within a factor of 1.5, where trainings are all or nothing within more too: with both ways that
    trainings may have, and with the gradual one alone."""
    rows = []
    for name, only in (("as printed", False), ("taken to be gradual", True)):
        settings: list[tuple[str, TrainingKind]] = [
            (f"little by little, noise {noise:g}, {shape}", gradual(noise, kind))
            for noise in (0.03, 0.08)
            for kind, shape in enumerate(("logistic", "probit", "Gompertz"))
        ]
        settings += [
            (f"{100 * low:g} or {100 * high:g} %, slope 10", _at_mean(low, high, 10.0))
            for low, high in ((0.05, 0.98), (0.15, 0.98))
        ]
        asked = [(*setting, 1.5) for setting in settings]
        asked += [(*setting, 2.0) for setting in settings[-2:] if not only]
        rows += [
            [
                *(what, name, f"{within:g}"),
                *located(training, lambda: Level(LOW, HIGH, LEVEL, gradual=only), within, runs),  # noqa: B023
            ]
            for what, training, within in asked
        ]
    return rows


def _at_mean(low: float, high: float, slope: float) -> TrainingKind:
    """All or nothing, with the mean rate at `LEVEL` where the crossing is."""
    shift = math.log((LEVEL - low) / (high - LEVEL)) / slope
    training = all_or_nothing(low, high, slope)
    return lambda z, random: training(z + shift, random)


_FOUND = ("interval holds the truth", "trials", "as narrow as asked", "of these, holds")

TABLES: tuple[tuple[int, Sequence[str], Callable[[int], list[list[str]]]], ...] = (
    (3, ("trainings end at", "over the parameter", "within a factor of", *_FOUND), shares),
    (3, ("trainings end at", "interval", "within a factor of", *_FOUND), levels),
)
"""As in `benchmarks.statistics`."""


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    for _, head, simulate in TABLES:
        print(table(head, simulate(runs)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
