"""Classes by their names."""

from __future__ import annotations

import json
import pickle

import pytest

from bdray.condition import Condition
from bdray.errors import ComponentError, ConditionError
from bdray.poisoning.base import STRATEGIES
from bdray.poisoning.classes import (
    NamedClass,
    class_options,
    classes_in,
    in_common,
    index_of,
    is_meant,
    misleading_numbers,
    said_classes,
)

NUMBERED = ("0", "1", "10", "11", "2")
REST = {"data": "cifar10", "model": "resnet8", "trigger": "patch"}


@pytest.mark.parametrize("strategy", [name for name, _ in STRATEGIES])
def test_every_option_that_holds_a_class_takes_its_name_and_keeps_its_index(strategy: str) -> None:
    for option in class_options(strategy):
        named, numbered = (
            Condition.parse({**REST, "poison": {"strategy": strategy, option: value}}) for value in ("cat", 3)
        )
        assert named == numbered
        assert named.condition_id == numbered.condition_id
        assert type(getattr(named.poison, option)) is int
        assert json.dumps(named.content()) == json.dumps(numbered.content())


def test_which_options_hold_a_class() -> None:
    found = {name: class_options(name) for name, _ in STRATEGIES}
    whole = {name: {"source", "target"} & set(cls.model_fields) for name, cls in STRATEGIES}
    assert {name: set(options) for name, options in found.items()} == whole
    assert class_options("unknown") == class_options(None) == ()


@pytest.mark.parametrize(("name", "index"), [("10", 2), ("name:10", 2), ("name:2", 4), ("0", 0)])
def test_text_is_a_name(name: str, index: int) -> None:
    assert index_of(name, NUMBERED, "mine") == index


def test_a_class_called_as_the_prefix_says_comes_first_and_unicode_spells_in_two_ways() -> None:
    assert index_of("name:10", ("10", "name:10"), "mine") == 1
    assert index_of("caf\u00e9", ("b", "cafe\u0301"), "mine") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ct", "cifar10 has no class 'ct'; did you mean 'cat'?"),
        ("name:dgo", "cifar10 has no class 'dgo'; did you mean 'dog'?"),
        ("3", "a number without quotes is an index"),
    ],
)
def test_an_unknown_name_is_explained(name: str, said: str) -> None:
    with pytest.raises(ConditionError) as raised:
        Condition.parse({**REST, "poison": {"target": name}})
    assert raised.value.path == "poison.target"
    assert said in raised.value.problem


def test_names_that_nobody_knows_yet_are_explained() -> None:
    with pytest.raises(ComponentError, match="those of mine are not known as long as it is not here; give the index"):
        index_of("cat", None, "mine")


def test_a_named_class_is_its_index_to_all_that_computes() -> None:
    cat = NamedClass(3, "cat")
    assert str(NamedClass(2, "10")) == "2 (10)" and str(NamedClass(3, "3")) == "3"
    assert (cat, hash(cat), json.dumps(cat), repr(cat), f"{cat:d}") == (3, hash(3), "3", "3", "3")
    assert str(pickle.loads(pickle.dumps(cat))) == str(cat) == "3 (cat)"


def test_what_is_written_means_an_index_or_a_name() -> None:
    assert all(is_meant(written, NamedClass(2, "10")) for written in (2, "10", "name:10"))
    assert not any(is_meant(written, NamedClass(2, "10")) for written in (10, "2", True, None))
    assert is_meant("10", "10")
    assert not is_meant("10", 10)


def test_what_is_shown_of_classes() -> None:
    flat = {"data.name": "cifar10", "poison.strategy": "one_to_one", "poison.source": 1, "poison.target": 3}
    named = flat | classes_in(flat, ("airplane", "automobile", "bird", "cat"))
    assert said_classes([named, named]) == {"source": "1 (automobile)", "target": "3 (cat)"}
    assert classes_in(flat, None) == said_classes([flat]) == {}
    assert "poison.target" not in classes_in(flat, ("one", "two"))
    other = {**named, "data.name": "mine", "poison.target": NamedClass(3, "d")}
    assert said_classes([named, other])["target"] == "3 (cat) of cifar10, 3 (d) of mine"
    assert str(in_common([named["poison.target"], other["poison.target"]])) == "3"
    assert str(in_common([named["poison.target"]] * 2)) == "3 (cat)"


def test_numbers_that_are_not_their_indices_are_said() -> None:
    assert misleading_numbers(NUMBERED) == "2 is '10', 3 is '11', 4 is '2'"
    assert misleading_numbers(("0", "1", "2")) == misleading_numbers(("cat", "1")) == ""
    assert misleading_numbers([str(number) for number in range(1, 20)]).endswith("5 is '6', ...")
