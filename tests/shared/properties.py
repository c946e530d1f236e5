"""Properties of whatever hypothesis draws: tried on a few examples, and in the tests that take longer on many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

Property = Callable[..., None]


def examples(
    few: int, many: int, *drawn: SearchStrategy[Any], **named: SearchStrategy[Any]
) -> Callable[[Property], Property]:
    """Turns a property of what is `drawn` into a test; `many` examples are marked `system` and `long`."""

    def tried(holds: Property) -> Property:
        @pytest.mark.parametrize("tries", [few, pytest.param(many, marks=(pytest.mark.system, pytest.mark.long))])
        def test(tries: int) -> None:
            settings(max_examples=tries, deadline=None, derandomize=True)(given(*drawn, **named)(holds))()

        return test

    return tried
