"""Axes and partial matches by themselves."""

from __future__ import annotations

import math
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdray.errors import SpaceError
from bdray.searches.domain import MISSING, Distribution, Kind, lookup
from bdray.space.axes import parse_parameters, parse_rule, spread
from bdray.space.source import parse_yaml
from bdray.values import freeze

UNIT = st.floats(0, 1, exclude_max=True)


@given(UNIT, st.sampled_from(get_args(Kind)), st.sampled_from([None, 0.5, 16]))
def test_draws_stay_between_their_ends(unit: float, kind: Kind, q: float | None) -> None:
    if q == 0.5 and kind.startswith("int"):
        q = None
    found = Distribution(kind, 16, 256, q)
    drawn = found.draw(unit)
    assert 16 <= drawn <= 256
    assert isinstance(drawn, int) == (kind.startswith("int") or q == 16)
    assert q is None or drawn % q == 0
    assert found.rounded(drawn) == drawn


@pytest.mark.parametrize(
    ("low", "high", "q", "drawn"),
    [(20, 50, 16, {32, 48}), (17, 33, 16, {32}), (0.05, 0.3, 0.1, {0.1, 0.2, 0.3}), (0.7, 1.1, 0.2, {0.8, 1.0})],
)
@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_draws_are_multiples_where_the_ends_are_none(
    kind: Kind, low: float, high: float, q: float, drawn: set[float]
) -> None:
    found = Distribution(kind, low, high, q)
    assert {found.draw(step / 100) for step in range(100)} == drawn


def test_whole_numbers_on_a_log_scale_are_as_frequent_as_their_share_of_it() -> None:
    found = Distribution("int_log_uniform", 1, 8)
    counts = Counter(found.draw(step / 10_000) for step in range(10_000))
    for number, count in counts.items():
        share = math.log((number + 0.5) / (number - 0.5)) / math.log(8.5 / 0.5)
        assert count / 10_000 == pytest.approx(share, abs=1e-3)
    assert set(counts) == set(range(1, 9))


@pytest.mark.parametrize(
    ("found", "low", "high", "answer"),
    [
        (Distribution("int_uniform", 1, 8), 2.0, 3.0, False),
        (Distribution("int_uniform", 1, 8), 2.4, 3.1, True),
        (Distribution("int_uniform", 1, 8), 0.2, 0.9, False),
        (Distribution("int_uniform", 1, 8), 8.1, 9.9, False),
        (Distribution("log_uniform", 16, 256, q=16), 16.5, 31.0, False),
        (Distribution("log_uniform", 16, 256, q=16), 16.5, 33.0, True),
        (Distribution("log_uniform", 0.1, 1), 0.2, 0.21, True),
    ],
)
def test_whether_a_value_lies_between(found: Distribution, low: float, high: float, *, answer: bool) -> None:
    assert found.has_between(low, high) is answer


def test_quantiles_are_those_of_the_distribution() -> None:
    assert Distribution("uniform", 2, 4).draw(0.5) == 3
    assert Distribution("log_uniform", 0.01, 1).draw(0.5) == pytest.approx(0.1)
    assert [Distribution("int_uniform", 0, 3).draw(quarter / 4) for quarter in range(4)] == [0, 1, 2, 3]
    assert Distribution("uniform", 0, 1, q=0.1).draw(0.31) == 0.3


def test_a_rule_is_true_false_or_open() -> None:
    rule = parse_rule(parse_yaml("{trigger.name: [patch, null], poison.rate: 0.1}", "x"), "exclude[0]")
    assert rule.matches({"trigger.name": "patch", "poison.rate": 0.1}) is True
    assert rule.matches({"trigger": None, "poison.rate": 0.1}) is True
    assert rule.matches({"trigger.name": "blend"}) is False
    assert rule.matches({"trigger.name": "patch"}) is None


def test_numbers_are_equal_as_numbers_and_truth_is_not_one() -> None:
    assert freeze(1) == freeze(1.0)
    assert freeze(True) != freeze(1)
    assert freeze([1, {"a": [2]}]) == freeze((1.0, {"a": (2,)}))
    assert lookup({"trigger": None}, "trigger.size") is None
    assert lookup({"trigger.name": "x"}, "trigger.size") is MISSING


def test_a_section_as_a_value_sets_every_path_of_it() -> None:
    assert spread("trigger", {"name": "patch", "size": 3}) == {"trigger.name": "patch", "trigger.size": 3}
    assert spread("model", "resnet8") == {"model.name": "resnet8"}
    (axis,) = parse_parameters(parse_yaml("trigger: {values: [{name: patch, size: 3}, {name: line}]}", "x")).values()
    assert axis.paths == {"trigger.name", "trigger.size"}


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        ("{min: 1}", "max is missing"),
        ("{min: 2, max: 1}", "must be greater than min"),
        ("{min: 0, max: 1, distribution: log_uniform}", "greater than 0 for log_uniform"),
        ("{min: 0.5, max: 1, distribution: int_uniform}", "whole numbers"),
        ("{min: 1, max: 9, distribution: int_log_uniform, q: 0.5}", "whole numbers"),
        ("{min: 17, max: 30, q: 16}", "poison.rate.q: no multiple of 16 lies between min and max"),
        ("{min: 0, max: 9, distribution: int_log_uniform}", "greater than 0 for int_log_uniform"),
        ("{values: []}", "the grid would be"),
        ("{value: 1, values: [2]}", "together"),
        ("0.1", "must be a mapping such as {value: 0.1}"),
    ],
)
def test_what_is_no_axis(leaf: str, said: str) -> None:
    with pytest.raises(SpaceError, match=said.replace("{", r"\{")):
        parse_parameters(parse_yaml(f"poison.rate: {leaf}", "space.yaml"))
