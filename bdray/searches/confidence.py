"""Intervals of a mean that may be looked at after every value, and stopped at any of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

ERROR = 0.05
"""Probability that an interval fails to hold the mean at any look, ever."""

_STEPS = 1000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(50)


def confidence_sequence(values: Sequence[float]) -> tuple[float, float]:
    """The interval of the mean of independent values in [0, 1], whatever their distribution.

    Who bets on "the mean is m" a fair stake of lambda (x - m) on every value x has a capital of
    prod(1 + lambda (x - m)), which exceeds 1 / ERROR with probability ERROR at most, at any time, if m is the mean
    (Ville 1939). The interval holds the m against which the average capital over lambda from -1 / (1 - m) to 1 / m does
    not. The order of the values does not matter. Source: Waudby-Smith and Ramdas 2023, J. R. Stat. Soc. B 86 (the bets
    averaged as in their section 4.4; with 0 and 1 it is the beta-binomial mixture of Robbins 1970).
    """
    return _interval(dict(Counter(values)))


def constant(value: float, count: int) -> tuple[float, float]:
    """The interval of `count` values that are all alike. No others leave a narrower one than those at 0.5, or among
    zeros and ones than those at 1."""
    return _interval({value: count})


def _interval(counts: Mapping[float, int]) -> tuple[float, float]:
    """By how often each value was seen."""
    means = (np.arange(_STEPS) + 0.5) / _STEPS
    least, most = -1 / (1 - means), 1 / means
    bets = (least + most)[:, None] / 2 + (most - least)[:, None] / 2 * _NODES
    logs = np.zeros_like(bets)
    for value, count in counts.items():
        logs += count * np.log(np.maximum(1 + bets * (value - means[:, None]), 1e-300))
    top = logs.max(axis=1, keepdims=True)
    capital = top[:, 0] + np.log((np.exp(logs - top) * _WEIGHTS).sum(axis=1) / 2)
    held = np.flatnonzero(capital < -np.log(ERROR))
    if not len(held):
        # Thousands of values: narrower than a step.
        held = np.array([int(np.argmin(capital))])
    return float(held[0]) / _STEPS, float(held[-1] + 1) / _STEPS
