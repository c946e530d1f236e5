"""Where a curve crosses a level: a posterior on a grid, the interval it gives, and where to look next.

The curve is a logistic one between a floor and a ceiling, over the logarithm of a parameter; all of its parts are
unknown: `y(x) = f + (c - f) sigmoid(s (x - x0) + logit((at - f) / (c - f)))`, so that `y(x0) = at`. `Share`: y is the
share of trainings that take, of which each trial is one (a psychometric function; floor and ceiling are its lapses).
`Level`: y is a rate itself, around which trainings scatter, or of which each has all or nothing. Priors are flat on
their grids where nothing else is said (our choice).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

POINTS = 121
BEYOND = 0.5
"""How far outside the range the crossing is looked for, in ranges: enough to say that it is not inside."""

SLOPES = np.geomspace(1.0, 40.0, 8)
"""Of the logistic curve, a decade."""

FLOORS, CEILINGS = (0.0, 0.05, 0.1, 0.2), (0.7, 0.85, 1.0)
"""Of a rate."""

SPREADS = np.geomspace(0.01, 0.3, 6)

LAPSES = (0.0, 0.03, 0.1)
"""Share of trainings that take where none should, and that do not where all should."""

_LOOK = (0.5, 0.2, 0.8, 0.35, 0.65)
"""Quantiles of the posterior that are looked at in turn: the middle bisects, the others learn the slope."""


@dataclass(frozen=True)
class Crossing:
    """What is known of a crossing, on the scale of log10.

    Attributes:
        middle: the posterior's median.
        low, high: its central interval.
        below, above: the probability that it lies below the range, or above it.
    """

    middle: float
    low: float
    high: float
    below: float
    above: float


class Curves:
    """The curves that are thought of: one a slope, floor and ceiling, at every place of the crossing.

    Args:
        low, high: the range, log10 of the parameter.
        at: the level, within (0, 1).
        floors, ceilings: what a curve may begin and end at.
    """

    def __init__(
        self, low: float, high: float, at: float, floors: Sequence[float], ceilings: Sequence[float], *, rising: bool
    ) -> None:
        margin = BEYOND * (high - low)
        self.places = np.linspace(low - margin, high + margin, POINTS)
        self.inside = self.places[(self.places >= low) & (self.places <= high)]
        under = [floor for floor in floors if at - 0.02 > floor] or [at / 2]
        over = [ceiling for ceiling in ceilings if at + 0.02 < ceiling] or [(1 + at) / 2]
        shapes = [(s, f, c) for s in SLOPES for f in under for c in over]
        self.slope, self.floor, self.ceiling = (np.array(part)[:, None] for part in zip(*shapes, strict=True))
        share = (at - self.floor) / (self.ceiling - self.floor)
        self._shift, self._sign = np.log(share / (1 - share)), 1 if rising else -1

    def at(self, x: float) -> Floats:
        """What they have at `x`: curves x places of the crossing."""
        distance = (x - self.places[None, :]) * self._sign
        rise = 1 / (1 + np.exp(-np.clip(self.slope * distance + self._shift, -60, 60)))
        values: Floats = self.floor + (self.ceiling - self.floor) * rise
        return values

    @cached_property
    def inside_values(self) -> Floats:
        """The same at every place within the range."""
        return np.stack([self.at(place) for place in self.inside])


class Posterior(ABC):
    """The crossing of a level within `low` to `high` (log10 of the parameter)."""

    def __init__(self, low: float, high: float, curves: Curves) -> None:
        self.low, self.high, self._curves = low, high, curves
        self._density: Floats | None = None

    @abstractmethod
    def observe(self, x: float, y: float) -> None:
        """A value `y` (0 to 1) at `x`."""

    @abstractmethod
    def weights(self) -> Floats:
        """The posterior of each curve: curves x places of the crossing; they sum to 1."""

    @abstractmethod
    def looks(self, turn: int) -> Sequence[float]:
        """Where to look next, within the range, best first. `turn`: how often that was asked before."""

    def density(self) -> Floats:
        """The posterior's weight of each place on the grid; they sum to 1."""
        if self._density is None:
            self._density = self.weights().sum(axis=0)
        return self._density

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        """Places below which this much of the posterior lies; a point of the grid stands for what lies around it."""
        places = self._curves.places
        half = (places[1] - places[0]) / 2
        edges = np.append(places - half, places[-1] + half)
        total = np.concatenate([[0.0], np.cumsum(self.density())])
        return [float(np.interp(level, total, edges)) for level in levels]

    def crossing(self, level: float = 0.95) -> Crossing:
        """What is known; `level` of the posterior lies in the interval."""
        low, middle, high = self.quantiles([(1 - level) / 2, 0.5, (1 + level) / 2])
        density, places = self.density(), self._curves.places
        below, above = density[places < self.low].sum(), density[places > self.high].sum()
        return Crossing(middle, low, high, float(below), float(above))


class Level(Posterior):
    """Where a rate crosses the level `at`, from rates of single trainings.

    Either they scatter around the curve, or each lies near its floor or near its ceiling, more often near the ceiling
    the higher the curve: then the curve is their mean. Which of the two holds is unknown too. Without the second, a few
    trainings that took or did not look like a steep curve, and of the intervals less than half held
    (`docs/statistics.md`). There the prior is that of `Share`, for the same reason: with one that is flat in the
    logarithm of the slope, of the few intervals that were narrow a quarter held nothing.

    Args:
        gradual: the second is known not to hold.
    """

    def __init__(self, low: float, high: float, at: float, *, rising: bool = True, gradual: bool = False) -> None:
        super().__init__(low, high, _curves(low, high, at, FLOORS, CEILINGS, rising=rising))
        self._log: Floats = np.zeros((2, len(SPREADS), len(self._curves.slope), POINTS))
        flat = np.log(len(self._curves.slope) / (1 / self._curves.slope).sum())
        self._log[1] = -np.inf if gradual else flat - np.log(self._curves.slope)

    def observe(self, x: float, y: float) -> None:
        curves, spread = self._curves, SPREADS[:, None, None]
        mean = curves.at(x)
        with np.errstate(divide="ignore"):
            rises = np.log((mean - curves.floor) / (curves.ceiling - curves.floor))
            stays = np.log((curves.ceiling - mean) / (curves.ceiling - curves.floor))
        around, near_floor, near_ceiling = (
            -((y - each) ** 2) / (2 * spread**2) - np.log(spread) for each in (mean, curves.floor, curves.ceiling)
        )
        self._log += np.stack([around, np.logaddexp(stays + near_floor, rises + near_ceiling)])
        self._density = None

    def weights(self) -> Floats:
        weights: Floats = _normalised(self._log).sum(axis=(0, 1))
        return weights

    @property
    def all_or_nothing(self) -> float:
        """The probability that trainings lie near floor or ceiling, not around the curve."""
        return float(_normalised(self._log)[1].sum())

    def looks(self, turn: int) -> Sequence[float]:
        turns = range(turn, turn + 50)
        found = self.quantiles([_LOOK[turn % len(_LOOK)] for turn in turns])
        return [min(max(x, self.low), self.high) for x in found]


class Share(Posterior):
    """Where the share of trainings that take crosses `at`, from trainings that took (1) or did not (0).

    The next value is the one whose outcome is expected to tell most of crossing and slope (Kontsevich and Tyler 1999,
    Vision Res. 39; QUEST+: Watson 2017, J. Vision 17). The prior is flat in 1 / slope, the spread of the crossing over
    trainings: with one that is flat in the logarithm of the slope, few trials that agree by luck look like a step, and
    of the intervals that were narrow on a curve with a slope of 4 a decade less than half held
    (`docs/statistics.md`).
    """

    def __init__(self, low: float, high: float, at: float, *, rising: bool = True) -> None:
        super().__init__(low, high, _curves(low, high, at, LAPSES, tuple(1 - lapse for lapse in LAPSES), rising=rising))
        self._log: Floats = np.repeat(-np.log(self._curves.slope), POINTS, axis=1)

    def observe(self, x: float, y: float) -> None:
        curve = self._curves.at(x)
        # A curve without lapses may be surer than floating point.
        self._log += np.log(np.maximum(curve if y > 0.5 else 1 - curve, 1e-30))
        self._density = None

    def weights(self) -> Floats:
        return _normalised(self._log)

    def looks(self, turn: int) -> Sequence[float]:
        inside, taking = self._curves.inside, self._curves.inside_values
        # Lapses are nuisances: what is learnt of them does not count.
        by_slope = self.weights().reshape(len(SLOPES), -1, POINTS)
        weight = by_slope.sum(axis=1)
        took = (taking.reshape(len(inside), *by_slope.shape) * by_slope).sum(axis=2)
        conditional = np.divide(took, weight, out=np.zeros_like(took), where=weight > 0)
        told = _entropy(took.sum(axis=(1, 2))) - (weight * _entropy(conditional)).sum(axis=(1, 2))
        best: list[float] = inside[np.argsort(-told, kind="stable")].tolist()
        return best


@lru_cache(maxsize=8)
def _curves(
    low: float, high: float, at: float, floors: tuple[float, ...], ceilings: tuple[float, ...], *, rising: bool
) -> Curves:
    """One for all cells of a search."""
    return Curves(low, high, at, floors, ceilings, rising=rising)


def _normalised(log: Floats) -> Floats:
    """Weights that sum to 1, from their logarithms."""
    weights: Floats = np.exp(log - log.max())
    weights /= weights.sum()
    return weights


def _entropy(p: Floats) -> Floats:
    """Of an outcome with two values, in nats."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    entropy: Floats = -p * np.log(p) - (1 - p) * np.log(1 - p)
    return entropy
