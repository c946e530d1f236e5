"""Whether the backdoor of one training took, by counts alone."""

from __future__ import annotations

import math

from bdray.results.statistics import wilson_interval

TOOK_AT = 0.5
"""Share of what a floor leaves to gain (our choice)."""


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
    own, floors = wilson_interval(successes, images), wilson_interval(floor_successes, floor_images)
    distance = rate - share * floor - at
    if distance > math.hypot(rate - own.low, share * (floors.high - floor)):
        return True
    if -distance > math.hypot(own.high - rate, share * (floor - floors.low)):
        return False
    return None
