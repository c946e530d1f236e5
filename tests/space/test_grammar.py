"""The keys of a search space, one owner each; and what a plan refuses before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from yaml import SafeLoader

from bdray.condition import Condition
from bdray.errors import SpaceError, UserError
from bdray.searches.domain import lookup
from bdray.space import SearchSpace, load_space
from bdray.space.axes import Parameter, Rule, parse_parameters, spread
from bdray.space.building import merge, nest
from bdray.space.expansion import Unit, in_order
from bdray.space.grammar import KEYS, TRACKING_SCHEMES, Grammar, is_name, name_from
from bdray.space.source import MAX_NODES, parse_yaml
from bdray.tracking.server import absolute_tracking_uri
from bdray.values import freeze, quote, show, show_cell

Load = Callable[[str], SearchSpace]
FIXED = "fixed: {data: cifar10, model: resnet8, trigger: patch}\n"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> SearchSpace:
        (tmp_path / "space.yaml").write_text(text)
        return load_space(tmp_path / "space.yaml")

    return load


def test_every_key_is_a_field_and_is_written_back(load: Load) -> None:
    space = load(FIXED)
    assert isinstance(space, Grammar)
    assert tuple(space.resolved()) == KEYS
    again = load(space.to_yaml())
    assert again.resolved() == space.resolved()
    assert {"loosened", "root", "expansion"}.isdisjoint(KEYS)


def test_a_parameter_that_goes_leaves_its_zip_group(load: Load) -> None:
    text = (
        "parameters: {train.lr: {values: [1, 2]}, train.epochs: {values: [1, 2]}, poison.rate: {values: [0.1, 0.2]}}\n"
    )
    space = load(FIXED + text + "zip: [[train.lr, train.epochs]]\n")
    assert space.zip == (("train.lr", "train.epochs"),)
    assert space.without("train.lr").zip == ()
    assert space.without("poison.rate").zip == space.zip
    assert space.possible("train.epochs") == ([1, 2], False)
    assert space.possible("seed") == ([0], False)
    assert replace(space, seeds=(3,)).possible("seed") == ([3], False)


@pytest.mark.parametrize(
    ("text", "line", "path", "said"),
    [
        (FIXED + f"seeds: {list(range(20_000))}\n", 2, "seeds", "lists 20,000 seeds; at most 10,000"),
        (
            FIXED + "tracking: {uri: 'htp://server'}\n",
            2,
            "tracking.uri",
            "MLflow has no 'htp://'; did you mean 'http'?",
        ),
        (
            "fixed: {data: cifar10, model: resnet8, trigger: {name: watermark,\n  size: 30}}\n",
            2,
            "trigger.size",
            "larger than images of 32 pixels",
        ),
        (
            "fixed: {data: cifar10, model: resnet8, trigger: {name: watermark,\n  size: 1000000}}\n",
            2,
            "trigger.size",
            "larger than images of 32 pixels",
        ),
        (
            FIXED.replace("patch", "watermark") + f"parameters: {{trigger.text: {{values: [b, {'b' * 33}]}}}}\n",
            2,
            "trigger.text",
            "larger than images",
        ),
        (FIXED + "plugin_path: [3]\n", 2, "plugin_path", "must be a folder, got 3"),
        (FIXED + "resources: {overrides: [{when: {trigger.name: patch}}]}\n", 2, "resources.overrides[0]", "neither"),
    ],
)
def test_what_cannot_work_is_said_when_it_is_planned(load: Load, text: str, *, line: int, path: str, said: str) -> None:
    with pytest.raises(SpaceError) as caught:
        load(text)
    assert (caught.value.line, caught.value.path) == (line, path)
    assert said in caught.value.problem


def test_a_million_seeds_are_refused_before_they_are_read(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    compose, read = SafeLoader.compose_node, itertools.count()
    monkeypatch.setattr(SafeLoader, "compose_node", lambda *args: (next(read), compose(*args))[1])
    with pytest.raises(SpaceError, match="more than 50,000 values"):
        load(FIXED + f"seeds: [{','.join(map(str, range(400_000)))}]\n")
    assert next(read) == MAX_NODES


def test_tracking_schemes_are_those_that_tracking_takes() -> None:
    for scheme in TRACKING_SCHEMES:
        absolute_tracking_uri(f"{scheme}:///place")
    with pytest.raises(UserError):
        absolute_tracking_uri("htp://server")


@pytest.mark.parametrize(
    ("value", "shown", "cell", "quoted"),
    [
        (None, "null", "-", "null"),
        (True, "true", "true", "true"),
        (0.123456, "0.123456", "0.1235", "0.123456"),
        (12_345, "12345", "12345", "12345"),
        ("no", "no", "no", "'no'"),
        ([1, [None, "a"]], "[1, [null, a]]", "[1, [null, a]]", "[1, [null, a]]"),
        ({"a": {"b": False}}, "{a: {b: false}}", "{a: {b: false}}", "{a: {b: false}}"),
        ("x" * 100, "x" * 100, "x" * 100, "'" + "x" * 56 + "..."),
    ],
)
def test_plain_values_are_shown_as_yaml_writes_them(value: Any, *, shown: str, cell: str, quoted: str) -> None:
    assert (show(value), show_cell(value), quote(value)) == (shown, cell, quoted)


def test_flat_paths() -> None:
    assert spread("model", "resnet8") == {"model.name": "resnet8"}
    assert spread("trigger", {"name": "patch", "size": 3}) == {"trigger.name": "patch", "trigger.size": 3}
    assert nest({"train.evaluate.every": 2, "seed": 1}) == {"train": {"evaluate": {"every": 2}}, "seed": 1}
    assert merge({"trigger.name": "patch", "seed": 0}, {"trigger": None}) == {"seed": 0, "trigger": None}
    assert lookup({"trigger": None}, "trigger.size") is None
    assert freeze(1) == freeze(1.0) != freeze(True)
    for wrong in ({"train": 3, "train.lr": 1}, {"train.lr": 1, "train": 3}):
        with pytest.raises(UserError):
            nest(wrong)


def axes(text: str) -> list[Parameter]:
    return list(parse_parameters(parse_yaml(text, "f")).values())


def test_rules_leave_open_what_they_do_not_know() -> None:
    rule = Rule(parse_yaml("{trigger.name: [patch, null], poison.rate: 0.1}", "f").content, parse_yaml("", "f").where)
    assert rule.matches({"trigger.name": "patch", "poison.rate": 0.1}) is True
    assert rule.matches({"trigger": None, "poison.rate": 0.1}) is True
    assert rule.matches({"trigger.name": "patch"}) is None
    assert rule.matches({"trigger.name": "blend"}) is False
    assert str(rule) == "{trigger.name: [patch, null], poison.rate: 0.1}"


def test_units_come_after_what_they_ask_about() -> None:
    text = "{train.lr: {values: [1], when: {trigger.name: patch}}, trigger: {values: [patch, null]}}"
    assert [unit.members[0].path for unit in in_order([Unit([axis]) for axis in axes(text)])] == ["trigger", "train.lr"]
    circle = axes("{train.lr: {value: 1, when: {poison.rate: 1}}, poison.rate: {value: 1, when: {train.lr: 1}}}")
    with pytest.raises(SpaceError, match=r"in a circle: train\.lr, poison\.rate"):
        in_order([Unit([axis]) for axis in circle])
    zipped = Unit(axes(text.replace("[1]", "[1, 2]")))
    assert zipped.rows({}) == [{"trigger.name": "patch", "train.lr": 1}, {"trigger": None}]


def test_conditions_of_a_space_share_their_sections(load: Load) -> None:
    conditions: list[Condition] = load(FIXED + "seeds: [0, 1, 2]\n").conditions()
    assert len({id(condition.train) for condition in conditions}) == 1
    assert [condition.condition_id for condition in conditions] == [
        Condition.parse(condition.content()).condition_id for condition in conditions
    ]


@pytest.mark.parametrize("text", ["study", "x" * 200, "bädnet run(1)", "-.a", "日本", "." * 120 + "a", "y" * 99 + ".z"])
def test_whatever_a_file_is_called_its_sweep_has_a_name(text: str, tmp_path: Path) -> None:
    """Found: a long one was refused for a name that nobody had given."""
    assert is_name(name_from(text)) and is_name(f"{name_from(text, 90)}-imported")
    path = tmp_path / f"{text}.yaml"
    path.write_text("fixed: {data: {name: digits}, model: {name: resnet8}, trigger: {name: patch}}\n")
    assert is_name(load_space(path).name)
