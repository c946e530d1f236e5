"""Levels and fractions."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from bdray.intensity import Intensity


@pytest.mark.parametrize(
    ("given", "fraction"), [(20, 20 / 255), (20 / 255, 20 / 255), (255, 1.0), (1, 1.0), (0.5, 0.5)]
)
def test_what_is_above_one_is_levels(given: float, fraction: float) -> None:
    assert TypeAdapter(Intensity).validate_python(given, strict=True) == fraction


@pytest.mark.parametrize("given", [0, -1, 256, "20", True, float("nan"), None])
def test_refuses(given: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Intensity).validate_python(given, strict=True)
