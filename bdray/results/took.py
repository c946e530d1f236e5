"""Whether the backdoor of one training took, by counts alone."""

from __future__ import annotations

import math

TOOK_AT = 0.5
"""Share of what a floor leaves to gain (our choice)."""

_Z = 1.959963984540054
"""Normal quantile of a two-sided interval of 95 %."""


def took(successes: int, images: int, floor_successes: int, floor_images: int, at: float = TOOK_AT) -> bool | None:
    """Whether (ASR - floor) / (1 - floor) lies above `at`, by its 95 % interval over the test images.

    It does where ASR - (1 - at) floor lies above `at`. The interval of that difference is made of Wilson's of both
    rates: d -+ sqrt((p - low_p)^2 + c^2 (high_q - q)^2) with c = 1 - at. Source: Zou and Donner 2008, Stat. Med. 27
    (MOVER); with c = 1 it is Newcombe's (1998, method 10).

    Args:
        successes, images: attacked test images that are classified as the attacker wants, and all of them.
        floor_successes, floor_images: the same of the baseline, or summed over baselines.
        at: in (0, 1).

    Returns:
        None where the interval holds `at`, and where an image or the floor is missing: unclear.
    """
    if not images or not floor_images:
        return None
    rate, floor, share = successes / images, floor_successes / floor_images, 1 - at
    low, high = _wilson(successes, images)
    floor_low, floor_high = _wilson(floor_successes, floor_images)
    distance = rate - share * floor - at
    if distance > math.hypot(rate - low, share * (floor_high - floor)):
        return True
    if -distance > math.hypot(high - rate, share * (floor - floor_low)):
        return False
    return None


def _wilson(successes: int, trials: int) -> tuple[float, float]:
    """Score interval of a proportion; `scipy.stats` would take most of a second to import."""
    rate, weight = successes / trials, _Z**2 / trials
    middle = (rate + weight / 2) / (1 + weight)
    reach = _Z * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)
