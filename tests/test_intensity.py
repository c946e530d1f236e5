"""Levels and fractions."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from bdray.condition import COMPONENTS
from bdray.errors import ComponentError
from bdray.intensity import Intensity


@pytest.mark.parametrize(
    ("given", "fraction"), [(20, 20 / 255), (20 / 255, 20 / 255), (255, 1.0), (1, 1.0), (0.5, 0.5), (0, 0.0)]
)
def test_what_is_above_one_is_levels(given: float, fraction: float) -> None:
    assert TypeAdapter(Intensity).validate_python(given, strict=True) == fraction


@pytest.mark.parametrize("given", [-1, -0.01, 256, float("inf"), "20", True, float("nan"), None])
def test_refuses(given: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Intensity).validate_python(given, strict=True)


AMOUNTS = [
    ("trigger", {"name": "sinusoid"}, "delta"),
    ("poison", {"strategy": "clean_label"}, "epsilon"),
    ("poison", {"strategy": "clean_label"}, "step_size"),
    ("regularizer", {"name": "logit_squeezing"}, "sigma"),
]


@pytest.mark.parametrize(("section", "content", "option"), AMOUNTS)
def test_every_component_means_the_same_by_an_amount(section: str, content: dict[str, Any], option: str) -> None:
    build = COMPONENTS[section].build
    levels, fraction = build({**content, option: 16}), build({**content, option: 16 / 255})
    assert getattr(levels, option) == 16 / 255
    assert levels.identity() == fraction.identity()
    for given in (-0.1, 300):
        with pytest.raises(ComponentError, match=f"{option}: must be a fraction of the full range.*got {given}"):
            build({**content, option: given})


@pytest.mark.parametrize(("section", "content", "option"), AMOUNTS[:3])
def test_nothing_is_an_error_where_it_makes_no_sense(section: str, content: dict[str, Any], option: str) -> None:
    with pytest.raises(ComponentError, match="greater than 0"):
        COMPONENTS[section].build({**content, option: 0})
