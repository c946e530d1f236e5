"""Amounts of brightness: stored as fractions of the full range, and written in whichever unit is natural."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _fraction(given: Any) -> Any:
    is_levels = isinstance(given, (int, float)) and not isinstance(given, bool) and given > 1
    return given / 255 if is_levels else given


Intensity = Annotated[float, BeforeValidator(_fraction), Field(gt=0.0, le=1.0)]
"""A fraction of the full range. What is above 1 is taken for levels of 255, since YAML cannot say `20/255`: `20` and
`0.0784...` are the same setting, and have the same id."""
