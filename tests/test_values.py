"""Plain values in one line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bdray.values import quote, show, show_amount, show_cell, show_rate


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(),
        lambda below: st.lists(below) | st.dictionaries(st.sampled_from(["a", "b"]), below),
    )
)
def test_yaml_reads_back_what_is_shown(value: Any) -> None:
    assert yaml.safe_load(show(value)) == value


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.123456, "0.1235"), (1e-6, "1e-06"), (3, "3"), (True, "true"), ("x", "x")]
)
def test_tables_show_four_digits_and_a_dash_for_nothing(value: Any, shown: str) -> None:
    assert show_cell(value) == shown


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(0.0271, "0.027"), (0.4, "0.4"), (0.96, "0.96"), (4.26, "4.3"), (9.96, "10"), (12.6, "13"), (12345.6, "12,346")],
)
def test_few_images_a_second_are_not_none(rate: float, shown: str) -> None:
    assert show_rate(rate) == shown


@pytest.mark.parametrize(
    ("hours", "shown"), [(0.0, "0"), (0.00278, "0.0028"), (0.094, "0.094"), (0.5, "0.50"), (1024.5, "1,024.50")]
)
def test_a_little_is_not_nothing(hours: float, shown: str) -> None:
    assert show_amount(hours) == shown


def test_messages_quote_text_and_cut_what_is_long() -> None:
    assert quote("no") == "'no'"
    assert quote(None) == "null"
    assert quote("x" * 100) == "'" + "x" * 56 + "..."
    assert len(quote(list(range(100)))) == 60
