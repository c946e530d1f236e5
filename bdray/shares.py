"""Shares of so many things, which come to `round(share * total)` of them, and what is said where that is none."""

from __future__ import annotations

import math


def smallest_share(total: int) -> float:
    """The smallest share of `total` things, of three digits, that does not come to none: more than half a thing, since
    Python rounds a half to the even number."""
    half = 0.5 / total
    scale = 10.0 ** (2 - math.floor(math.log10(half)))
    return float(f"{(math.floor(half * scale * (1 + 1e-12)) + 1) / scale:.3g}")


def comes_to_nothing(share: float, total: int, things: str, option: str) -> str | None:
    """What is wrong with a share above 0 that is rounded to none; None where it is not.

    Args:
        things: what there are `total` of ("training images").
        option: the path that gives the share ("poison.rate").
    """
    if share == 0.0 or round(share * total):
        return None
    smallest = f"the smallest {option} that is not nothing is {smallest_share(total):g}" if total else "there are none"
    return f"{share:g} of {total} {things} comes to 0; {smallest}"
