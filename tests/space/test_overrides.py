"""What the command line changes of a search space, piece by piece (`test_load.py` has whole spaces)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bdray.errors import SpaceError
from bdray.space import load_space
from bdray.space.grammar import KEYS
from bdray.space.overrides import Overrides, parse_seed_list
from bdray.space.source import parse_yaml


def parsed(*overrides: str, only: Sequence[str] = (), seeds: Sequence[int] | None = None) -> Overrides:
    content = parse_yaml("seeds: [0]\nsearch: {method: random, max_trials: 5}", "space.yaml").mapping("")
    return Overrides.parse(content, KEYS, overrides, only, seeds)


def test_a_condition_path_gets_one_value() -> None:
    forced = parsed("train.epochs=2", "model=resnet8")
    assert {path: node.plain() for path, node in forced.values.items()} == {"train.epochs": 2, "model.name": "resnet8"}


def test_a_section_keeps_what_is_not_replaced() -> None:
    assert parsed("search.max_trials=9").content["search"].plain() == {"method": "random", "max_trials": 9}
    assert parsed("resources.cpu=2").content["resources"].plain() == {"cpu": 2}


def test_seeds_in_three_ways() -> None:
    for forced in (parsed("seed=3"), parsed("seeds=[3]"), parsed(seeds=[3])):
        assert forced.content["seeds"].plain() == [3]
        assert forced.seeds == {"seed"}


def test_an_axis_and_a_filter() -> None:
    forced = parsed("parameters.poison.rate={values: [0.1, 0.2]}", only=["trigger=patch"])
    assert [value.plain() for value in forced.parameters["poison.rate"].values] == [0.1, 0.2]
    assert [rule.plain() for rule in forced.only] == [{"trigger.name": "patch"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [("train.epochs", "must be --set path=value"), ("trian.epochs=1", "did you mean 'train'"), ("=1", "path=value")],
)
def test_what_is_wrong_names_the_option(text: str, said: str) -> None:
    with pytest.raises(SpaceError, match=said) as error:
        parsed(text)
    assert "--set" in str(error.value)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0,2", [0, 2]), ("0-3", [0, 1, 2, 3]), ("5, 7-8", [5, 7, 8]), ("1700000000", [1_700_000_000])]
)
def test_lists_of_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seed_list(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "0-999999"])
def test_what_is_no_list_of_seeds(text: str) -> None:
    with pytest.raises(SpaceError, match="--seeds"):
        parse_seed_list(text)


def test_the_largest_seed_is_named(tmp_path: Path) -> None:
    (path := tmp_path / "space.yaml").write_text("fixed: {data: digits, model: resnet8, trigger: patch}")
    largest = 2**63 - 1
    assert load_space(path, seeds=str(largest)).seeds == (largest,)
    for text in (str(largest + 1), "9" * 5000):
        with pytest.raises(SpaceError, match=rf"from 0 to {largest}"):
            load_space(path, seeds=text)


SEEDS = """\
seeds: {min: 4, max: 20, until: {metric: took, above: 0.5}}
baselines: true
fixed: {data: digits, model: resnet8, trigger: patch}
"""


def test_a_key_of_seeds_changes_that_key(tmp_path: Path) -> None:
    """Found: `seeds.max=30` made of the rule the one seed 30."""
    path = tmp_path / "space.yaml"
    path.write_text(SEEDS)
    rule = load_space(path, ["seeds.max=30", "seeds.until.above=0.4"]).replication
    assert rule is not None
    assert (rule.min, rule.max, rule.until.metric, rule.until.above) == (4, 30, "took", 0.4)
    asked = load_space(path, ["seeds={min: 5, max: 9, until: {half_width: 0.4}}"]).replication
    assert asked is not None and (asked.min, asked.max) == (5, 9)
    assert load_space(path, ["seeds=3"]).seeds == (3,)
    assert load_space(path, ["seeds=[1, 2]"]).replication is None


@pytest.mark.parametrize(
    ("seeds", "text", "said"),
    [
        ("[0, 1]", "seeds.max=30", "--set seeds.max=30: seeds.max: the search space lists seeds: [0, 1]; only"),
        ("{min: 4, max: 20, until: {metric: took, above: 0.5}}", "seeds.maxx=30", "did you mean 'max'?"),
        ("[0, 1]", "fixed.seed=7", "--set fixed.seed=7: seed: seeds are not fixed: list them under `seeds`"),
        ("[0, 1]", "fixed={seed: 7}", "seeds are not fixed"),
        ("[0, 1]", "seed.max=7", "seeds are not fixed"),
    ],
)
def test_seeds_that_cannot_be_set_so_are_refused(seeds: str, text: str, said: str, tmp_path: Path) -> None:
    """Found: `fixed.seed=7` took the place of all seeds, and wrote a space.yaml that could not be read."""
    path = tmp_path / "space.yaml"
    path.write_text(SEEDS.replace(SEEDS.splitlines()[0], f"seeds: {seeds}"))
    with pytest.raises(SpaceError) as caught:
        load_space(path, [text])
    assert said in str(caught.value)
