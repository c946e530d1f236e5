"""Amounts of brightness: stored as fractions of the full range, and written in whichever unit is natural."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

_LEVELS = 255


def _fraction(given: Any) -> Any:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return given
    if not 0 <= given <= _LEVELS:
        raise ValueError(f"must be a fraction of the full range, from 0 to 1, or levels of {_LEVELS} above 1")
    return given / _LEVELS if given > 1 else given


Intensity = Annotated[float, BeforeValidator(_fraction)]
"""A fraction of the full range, 0 to 1: the one unit of every amount of brightness. What is above 1 is taken for levels
of 255, since YAML cannot say `20/255`: `20` and `0.0784...` are the same setting, and have the same id. `1` is the
whole range; one level is `0.00392`. Where 0 makes no sense, the field says `gt=0`."""


def levels(intensity: float) -> float:
    """An intensity in levels of 255."""
    return intensity * _LEVELS


def whole_levels(intensity: float) -> int:
    """How many whole levels of 255 an intensity comes to."""
    # Written with a few digits, 0.03137 for 8/255, it must give 8 levels, not 7.
    return int(levels(intensity) + 1e-2)
