"""What every registered strategy must do, and the four built-in ones on a small example."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from bdray.errors import ComponentError
from bdray.poisoning import STRATEGIES, Poison

LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3])


@pytest.fixture(params=[name for name, _ in STRATEGIES])
def poison(request: pytest.FixtureRequest) -> Poison:
    return STRATEGIES.build(request.param)


def test_contract(poison: Poison) -> None:
    before = LABELS.copy()
    for mask in (poison.eligible(LABELS, 4), poison.attacked(LABELS, 4)):
        assert mask.shape == LABELS.shape
        assert mask.dtype == np.bool_
    for labels in (poison.poisoned_labels(LABELS, 4), poison.wanted_labels(LABELS, 4)):
        assert labels.shape == LABELS.shape
        assert labels.dtype == np.int64
        assert labels is not LABELS
        assert ((labels >= 0) & (labels < 4)).all()
    attacked = poison.attacked(LABELS, 4)
    assert attacked.any()
    assert (poison.wanted_labels(LABELS, 4)[attacked] != LABELS[attacked]).all()
    np.testing.assert_array_equal(LABELS, before)


def test_round_trips_through_json_and_pickle(poison: Poison) -> None:
    read = STRATEGIES.build(json.loads(json.dumps(poison.model_dump(mode="json"))))
    assert read == poison
    assert read.identity() == poison.identity()
    assert pickle.loads(pickle.dumps(poison)) == poison


@pytest.mark.parametrize(
    ("content", "eligible", "poisoned", "attacked", "wanted"),
    [
        ({"strategy": "all_to_one", "target": 2}, [0, 1, 3], [2, 2, 2, 2], [0, 1, 3], [2, 2, 2, 2]),
        ({"strategy": "one_to_one", "source": 3, "target": 1}, [3], [1, 1, 1, 1], [3], [1, 1, 1, 1]),
        ({"strategy": "all_to_all"}, [0, 1, 2, 3], [1, 2, 3, 0], [0, 1, 2, 3], [1, 2, 3, 0]),
        ({"strategy": "clean_label", "target": 2}, [2], [0, 1, 2, 3], [0, 1, 3], [2, 2, 2, 2]),
    ],
    ids=lambda value: value["strategy"] if isinstance(value, dict) else "",
)
def test_definitions(
    content: dict[str, Any], eligible: list[int], poisoned: list[int], attacked: list[int], wanted: list[int]
) -> None:
    poison, classes = STRATEGIES.build(content), np.arange(4)
    assert np.flatnonzero(poison.eligible(classes, 4)).tolist() == eligible
    assert poison.poisoned_labels(classes, 4).tolist() == poisoned
    assert np.flatnonzero(poison.attacked(classes, 4)).tolist() == attacked
    assert poison.wanted_labels(classes, 4).tolist() == wanted


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"strategy": "one_to_one", "source": 2, "target": 2}, "source and target must differ, both are class 2"),
        ({"strategy": "one_to_one", "sorce": 2}, "did you mean 'source'"),
        ({"strategy": "all_to_al"}, "did you mean 'all_to_all'"),
        ({"strategy": "clean_label", "perturbation": "gan"}, "perturbation"),
        ({"strategy": "clean_label", "epsilon": 0}, "epsilon"),
        ({"strategy": "all_to_one", "rate": 1.5}, "rate"),
        ({"strategy": "all_to_one", "target": True}, "target"),
    ],
)
def test_wrong_options_are_named(content: dict[str, Any], problem: str) -> None:
    with pytest.raises(ComponentError, match=problem):
        STRATEGIES.build(content)


@pytest.mark.parametrize(
    "content",
    [
        {"strategy": "all_to_one", "target": 4},
        {"strategy": "one_to_one", "source": 4},
        {"strategy": "one_to_one", "target": 4},
        {"strategy": "clean_label", "target": 4},
    ],
)
def test_a_class_that_does_not_exist_is_an_error(content: dict[str, Any]) -> None:
    poison = STRATEGIES.build(content)
    poison.check(5)
    with pytest.raises(ComponentError, match="class 4 does not exist: the data has 4 classes"):
        poison.check(4)


def test_epsilon_takes_levels() -> None:
    levels = STRATEGIES.build({"strategy": "clean_label", "epsilon": 8, "step_size": 2})
    assert levels == STRATEGIES.build("clean_label")
