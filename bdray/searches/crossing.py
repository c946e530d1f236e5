"""Where a noisy curve crosses a level: a posterior on a grid, the interval it gives, and where to look next.

The curve is a logistic one between a floor and a ceiling, over the logarithm of a parameter; all of its parts are
unknown: `y = f + (c - f) sigmoid(s (x - x0) + logit((at - f) / (c - f))) + noise`, so that `y(x0) = at`. Priors are
flat on their grids; the noise is Gaussian with unknown spread (our choice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

POINTS = 121
BEYOND = 0.5
"""How far outside the range the crossing is looked for, in ranges: enough to say that it is not inside."""

SLOPES = np.geomspace(1.0, 40.0, 8)
"""Of the logistic curve, a decade."""

FLOORS = np.array([0.0, 0.05, 0.1, 0.2])
CEILINGS = np.array([0.7, 0.85, 1.0])
SPREADS = np.geomspace(0.01, 0.3, 6)

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


class Posterior:
    """The crossing of `at` within `low` to `high` (log10 of the parameter) by a curve that rises (or falls).

    Args:
        at: the level, within (0, 1).
    """

    def __init__(self, low: float, high: float, at: float, *, rising: bool = True) -> None:
        self.low, self.high, self.rising = low, high, rising
        margin = BEYOND * (high - low)
        self._grid = np.linspace(low - margin, high + margin, POINTS)
        floors = FLOORS[at - 0.02 > FLOORS] if (at - 0.02 > FLOORS).any() else np.array([at / 2])
        ceilings = CEILINGS[at + 0.02 < CEILINGS] if (at + 0.02 < CEILINGS).any() else np.array([(1 + at) / 2])
        shapes = [(s, f, c) for s in SLOPES for f in floors for c in ceilings]
        self._slope, self._floor, self._ceiling = (np.array(part)[:, None] for part in zip(*shapes, strict=True))
        share = (at - self._floor) / (self._ceiling - self._floor)
        self._shift = np.log(share / (1 - share))
        # Sums of squared residuals for each place and shape.
        self._squares: Floats = np.zeros((len(shapes), POINTS))
        self._count = 0
        self._density: Floats | None = None

    def observe(self, x: float, y: float) -> None:
        """A value `y` (0 to 1) at `x`."""
        distance = (x - self._grid[None, :]) * (1 if self.rising else -1)
        curve = 1 / (1 + np.exp(-np.clip(self._slope * distance + self._shift, -60, 60)))
        self._squares += (y - (self._floor + (self._ceiling - self._floor) * curve)) ** 2
        self._count += 1
        self._density = None

    def density(self) -> Floats:
        """The posterior's weight of each place on the grid; they sum to 1."""
        if self._density is not None:
            return self._density
        log = [-self._squares / (2 * spread**2) - self._count * np.log(spread) for spread in SPREADS]
        stacked = np.stack(log)
        weights: Floats = np.exp(stacked - stacked.max()).sum(axis=(0, 1))
        self._density = weights / weights.sum()
        return self._density

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        """Places below which this much of the posterior lies."""
        total = np.cumsum(self.density())
        return [float(np.interp(level, total, self._grid)) for level in levels]

    def crossing(self, level: float = 0.95) -> Crossing:
        """What is known; `level` of the posterior lies in the interval."""
        low, middle, high = self.quantiles([(1 - level) / 2, 0.5, (1 + level) / 2])
        density = self.density()
        below, above = density[self._grid < self.low].sum(), density[self._grid > self.high].sum()
        return Crossing(middle, low, high, float(below), float(above))

    def next(self, turn: int) -> float:
        """Where to look next, within the range. `turn`: how often that was asked before."""
        (x,) = self.quantiles([_LOOK[turn % len(_LOOK)]])
        return min(max(x, self.low), self.high)
