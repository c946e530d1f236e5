"""What a condition is called, what it shares with others, and what it says of wrong content."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from bdray.condition import COMPONENTS, Condition, digest, flatten
from bdray.errors import ConditionError
from bdray.recipes import Finetune, Train
from bdray.registry import Component, Identified
from bdray.regularizers import REGULARIZERS

FULL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 32, "clean_pool": 0.1, "train_limit": None, "test_limit": None},
    "model": {"name": "resnet8", "stem": "auto", "weights": "none", "shortcut": "identity"},
    "trigger": {
        "name": "patch",
        "position": "bottom_right",
        "margin": 1,
        "opacity": 1.0,
        "size": 3,
        "style": "solid",
        "color": [255, 255, 255],
    },
    "poison": {"strategy": "all_to_one", "rate": 0.1, "rate_of": "train", "mode": "replace", "target": 0},
    "regularizer": {"name": "none"},
    "train": {"epochs": 30, "batch_size": 128, "optimizer": "sgd", "momentum": 0.9, "lr": 0.1},
    "finetune": {"epochs": 10, "batch_size": 128, "lr": 0.01, "fraction": 0.05, "split": "held_out", "layers": "all"},
    "seed": 0,
}
IDS = ("ee41b062c619", "ea6171607e2b", "d6b49264bbec", "06c2dbb99818")
SMALL: dict[str, Any] = {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "trigger": {"name": "patch"}}


def condition(**sections: Any) -> Condition:
    return Condition.parse({**SMALL, **sections})


def ids(one: Condition) -> tuple[str, str, str, str]:
    return one.condition_id, one.cell_id, one.poison_fingerprint, one.stages[-1].fingerprint


def test_ids_are_what_they_were() -> None:
    """A changed id orphans every result anyone has: these change only with `condition.SCHEMA` or a `VERSION`."""
    assert ids(Condition.parse(FULL)) == IDS


def grown(section: str, **attributes: Any) -> tuple[str, type[Component]]:
    """The component of `FULL` in a section as a later version might have it: with one more option."""
    registry = COMPONENTS[section]
    cls: type[Component] = registry.get(FULL.get(section, {"name": "finetune"})[registry.name_key])
    later = create_model(cls.__name__, __base__=cls, new_option=(int, 7))
    for name, value in attributes.items():
        setattr(later, name, value)
    return cls.registered_name, later


@pytest.mark.parametrize("section", COMPONENTS)
def test_a_new_option_moves_no_id_until_it_is_used(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ids(Condition.parse(FULL))
    name, later = grown(section)
    monkeypatch.setitem(COMPONENTS[section]._classes, name, later)
    assert ids(Condition.parse(FULL)) == before
    named = FULL.get(section, {"name": "finetune"})
    assert ids(Condition.parse({**FULL, section: {**named, "new_option": 7}})) == before
    used = ids(Condition.parse({**FULL, section: {**named, "new_option": 8}}))
    assert (used[0], used[1]) != (before[0], before[1])
    # What comes after the poison stage leaves the poisoned model alone; all else makes it another one.
    assert (used[2] == before[2]) == (section == "repair")


@pytest.mark.parametrize("section", COMPONENTS)
def test_a_component_that_means_something_else_has_other_ids(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ids(Condition.parse(FULL))
    version = COMPONENTS[section].get(FULL.get(section, {"name": "finetune"})[COMPONENTS[section].name_key]).VERSION
    name, later = grown(section, VERSION=version + 1)
    monkeypatch.setitem(COMPONENTS[section]._classes, name, later)
    after = ids(Condition.parse(FULL))
    assert after[0] != before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("recipe", [Train, Finetune])
def test_a_new_option_of_a_recipe_is_no_part_of_its_identity_until_it_is_used(recipe: type[Identified]) -> None:
    later = create_model("Later", __base__=recipe, new_option=(int, 7))
    assert later.model_validate({"lr": 0.5}).identity() == recipe.model_validate({"lr": 0.5}).identity() == {"lr": 0.5}
    assert later.model_validate({"lr": 0.5, "new_option": 8}).identity() == {"lr": 0.5, "new_option": 8}


def test_an_option_inside_an_option_counts_like_any_other() -> None:
    assert Train.model_validate({"evaluate": {"every": 1}}).identity() == {}
    assert Train.model_validate({"evaluate": {"every": 2}}).identity() == {"evaluate": {"every": 2}}
    parts = [{"name": "logit_squeezing", "weight": 0.5}, {"name": "contrastive"}]
    composite = REGULARIZERS.build({"name": "composite", "parts": parts})
    said = composite.identity()["parts"]
    assert said == [{"name": "logit_squeezing", "weight": 0.5}, {"name": "contrastive"}]


def test_repairs_of_one_poisoned_model_share_it() -> None:
    repairs = ("finetune", "none", "fine_pruning", {"name": "fine_pruning", "max_drop": 0.1})
    conditions = [condition(repair=repair) for repair in repairs]
    assert len({one.poison_fingerprint for one in conditions}) == 1
    assert len({one.condition_id for one in conditions}) == len(conditions)
    assert [[stage.name for stage in one.stages] for one in conditions] == [
        ["poison", "finetune"],
        ["poison"],
        ["poison", "prune", "finetune"],
        ["poison", "prune", "finetune"],
    ]
    assert [one.baseline().repair for one in conditions] == [one.repair for one in conditions]


def test_a_stage_depends_on_what_came_before_it() -> None:
    def stages(**sections: Any) -> dict[str, str]:
        return {stage.name: stage.fingerprint for stage in condition(repair="fine_pruning", **sections).stages}

    plain = stages()
    tuned_otherwise = stages(finetune={"lr": 0.5})
    assert tuned_otherwise["prune"] == plain["prune"]
    assert tuned_otherwise["finetune"] != plain["finetune"]
    for changed in (stages(train={"lr": 0.5}), stages(finetune={"fraction": 0.07}), stages(seed=1)):
        assert changed["prune"] != plain["prune"]
        assert changed["finetune"] != plain["finetune"]


def test_what_is_left_out_has_the_same_ids_as_what_is_said() -> None:
    assert ids(condition()) == ids(Condition.parse(FULL))
    assert ids(condition(data="digits", model="resnet8")) == ids(Condition.parse(FULL))


def test_ids_do_not_depend_on_key_order_or_process() -> None:
    turned = {name: dict(reversed(part.items())) if isinstance(part, dict) else part for name, part in FULL.items()}
    assert ids(Condition.parse(dict(reversed(turned.items())))) == ids(Condition.parse(FULL))
    program = "import sys, json; from bdray.condition import Condition as C;"
    program += "print(C.parse(json.loads(sys.argv[1])).condition_id)"
    command = [sys.executable, "-c", program, json.dumps(FULL)]
    there = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1], env={"PYTHONHASHSEED": "7"}
    )
    assert there.stdout.strip() == Condition.parse(FULL).condition_id


def test_paths_are_no_part_of_what_is_measured(tmp_path: Path) -> None:
    assert ids(condition(data={"name": "digits", "root": str(tmp_path)})) == ids(condition())
    weights = [tmp_path / name for name in ("a.pt", "b.pt", "other.pt")]
    for path, content in zip(weights, (b"same", b"same", b"different"), strict=True):
        path.write_bytes(content)
    same, again, other = (
        condition(model={"name": "resnet8", "weights": "file", "weights_file": str(path)}) for path in weights
    )
    assert ids(same) == ids(again)
    assert same.condition_id != other.condition_id != condition().condition_id


def test_the_seed_is_in_every_id_but_the_cells() -> None:
    first, second = condition(seed=0), condition(seed=1)
    assert first.cell_id == second.cell_id
    assert not set(ids(first)) - {first.cell_id} & set(ids(second))


@pytest.mark.parametrize(
    "changed",
    [
        {"data": {"name": "digits", "train_limit": 100}},
        {"model": {"name": "resnet20"}},
        {"trigger": {"name": "patch", "size": 4}},
        {"poison": {"rate": 0.2}},
        {"regularizer": {"name": "logit_squeezing"}},
        {"train": {"lr": 0.2}},
        {"train": {"evaluate": {"every": 2}}},
        {"seed": 3},
    ],
)
def test_what_changes_training_changes_every_stage(changed: dict[str, Any]) -> None:
    other = condition(**changed)
    assert other.condition_id != condition().condition_id
    assert other.poison_fingerprint != condition().poison_fingerprint
    assert other.stages[-1].fingerprint != condition().stages[-1].fingerprint


@pytest.mark.parametrize(
    "finetune",
    [
        {"lr": 0.5},
        {"epochs": 3},
        {"epochs": 0},
        {"layers": "head"},
        {"fraction": 0.1},
        {"fraction": 0.01, "split": "train_clean"},
        {"fraction": 0.9, "split": "train_clean"},
        {"optimizer": "adamw"},
    ],
)
def test_conditions_that_differ_in_fine_tuning_share_the_poisoned_model(finetune: dict[str, Any]) -> None:
    other = condition(finetune=finetune)
    assert other.poison_fingerprint == condition().poison_fingerprint
    assert other.condition_id != condition().condition_id
    assert other.stages[-1].fingerprint != condition().stages[-1].fingerprint


def test_a_clean_set_beyond_the_pool_takes_images_from_the_poison_stage() -> None:
    beyond = condition(finetune={"fraction": 0.2})
    assert beyond.held_out_fraction == 0.2
    assert beyond.poison_fingerprint != condition().poison_fingerprint
    pool = condition(data={"name": "digits", "clean_pool": 0.2}, finetune={"fraction": 0.05})
    assert pool.poison_fingerprint == beyond.poison_fingerprint
    assert condition(finetune={"fraction": 0.2, "epochs": 0}).held_out_fraction == 0.1


def test_the_baseline_is_the_unpoisoned_twin() -> None:
    poisoned = condition(regularizer={"name": "logit_squeezing"}, train={"lr": 0.03}, seed=4)
    twin = poisoned.baseline()
    assert (twin.is_baseline, twin.role, twin.trigger) == (True, "baseline", None)
    assert (poisoned.is_baseline, poisoned.role) == (False, "poisoned")
    assert (twin.poison.rate, twin.poison.cover_rate) == (0.0, 0.0)
    for section in ("data", "model", "regularizer", "train", "finetune", "seed"):
        assert getattr(twin, section) == getattr(poisoned, section)
    assert len({*ids(twin), *ids(poisoned)}) == 8
    assert twin.baseline().condition_id == twin.condition_id


def test_all_attacks_on_one_model_have_one_baseline() -> None:
    attacks: list[dict[str, Any]] = [
        {"trigger": {"name": "blend"}},
        {"poison": {"rate": 0.3, "target": 4}},
        {"poison": {"strategy": "one_to_one", "source": 1, "target": 2}},
    ]
    assert len({condition(**attack).baseline().condition_id for attack in attacks}) == 1
    # One that keeps a trigger to be tested with is another condition, but its model is the same.
    tested = condition(poison={"rate": 0.0})
    assert tested.is_baseline
    assert tested.poison_fingerprint == tested.baseline().poison_fingerprint


def test_cover_images_alone_are_no_baseline() -> None:
    assert not condition(poison={"rate": 0.0, "cover_rate": 0.1}).is_baseline


@pytest.mark.parametrize("sections", [{}, {"trigger": None, "poison": {"rate": 0.0}}, {"trigger": {"name": "filter"}}])
def test_conditions_survive_json(sections: dict[str, Any]) -> None:
    original = condition(**sections)
    read = Condition.parse(json.loads(json.dumps(original.content())))
    assert read == original
    assert ids(read) == ids(original)
    assert read.content() == original.content()


def test_flat_content_names_every_value_by_its_path() -> None:
    flat = condition().flat()
    assert (flat["trigger.size"], flat["train.evaluate.every"], flat["seed"]) == (3, 1, 0)
    assert flat["trigger.color"] == [255, 255, 255]
    assert condition(trigger=None, poison={"rate": 0.0}).flat()["trigger"] is None


@given(st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1)))
def test_flattening_keeps_every_leaf(content: Any) -> None:
    def leaves(node: Any) -> int:
        return sum(map(leaves, node.values())) if isinstance(node, dict) else 1

    wrapped = {"root": content}
    flat = flatten(wrapped)
    assert len(flat) == leaves(wrapped)
    for path, value in flat.items():
        node: Any = wrapped
        for part in path.split("."):
            node = node[part]
        assert node == value


def test_digest_knows_no_order_and_takes_no_nan() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": [2, 3]}) != digest({"a": [3, 2]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": float("nan")})


def test_a_condition_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        condition().seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sections", "path", "said"),
    [
        ({"modle": "resnet8"}, "modle", "did you mean 'model'?"),
        ({"model": {"name": "resnet9"}}, "model.name", "did you mean 'resnet8'?"),
        ({"model": {}}, "model.name", "known: "),
        ({"model": {"name": "resnet8", "stemm": "auto"}}, "model.stemm", "did you mean 'stem'?"),
        ({"model": {"name": "resnet8", "stem": "standard"}}, "model.stem", "only its own stem"),
        ({"model": 3}, "model", "must be a mapping"),
        ({"data": {"name": "digit"}}, "data.name", "did you mean 'digits'?"),
        ({"data": {"name": "digits", "image_size": "32"}}, "data.image_size", "integer (got '32')"),
        ({"data": {"name": "digits", "clean_pool": 1.0}}, "data.clean_pool", "less than 1"),
        ({"trigger": {"name": "pach"}}, "trigger.name", "did you mean 'patch'?"),
        ({"trigger": {"name": "patch", "sise": 3}}, "trigger.sise", "did you mean 'size'?"),
        ({"trigger": {"name": "patch", "size": 0}}, "trigger.size", "(got 0)"),
        ({"trigger": None}, "trigger.name", "a condition that poisons needs a trigger"),
        ({"poison": {"strategy": "all_to_many"}}, "poison.strategy", "did you mean 'all_to_"),
        ({"poison": {"rate": 1.5}}, "poison.rate", "less than or equal to 1 (got 1.5)"),
        ({"poison": {"target": 10}}, "poison.target", "class 10 does not exist: the data has 10 classes"),
        ({"poison": {"tagret": 1}}, "poison.tagret", "did you mean 'target'?"),
        ({"regularizer": {"name": "logit_squeezin"}}, "regularizer.name", "did you mean 'logit_squeezing'?"),
        ({"regularizer": {"name": "manifold_mixup", "layers": ["stage9"]}}, "regularizer.layers", "stage9"),
        ({"train": {"lrr": 0.1}}, "train.lrr", "did you mean 'lr'?"),
        ({"train": {"lr": 0.0}}, "train.lr", "greater than 0"),
        ({"train": {"epochs": 0}}, "train.epochs", "greater than or equal to 1"),
        ({"train": {"batch_size": 1}}, "train.batch_size", "greater than or equal to 2"),
        ({"train": {"schedule": "cosin"}}, "train.schedule", "'cosine'"),
        ({"train": {"evaluate": {"evry": 1}}}, "train.evaluate.evry", "did you mean 'every'?"),
        ({"train": 3}, "train", "(got 3)"),
        ({"finetune": {"layers": "heads"}}, "finetune.layers", "'head'"),
        ({"finetune": {"fraction": 0.0}}, "finetune.fraction", "greater than 0"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": "0"}, "seed", "integer"),
    ],
)
def test_wrong_content_is_named_with_its_path(sections: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(ConditionError) as caught:
        condition(**sections)
    assert caught.value.path == path
    assert said in caught.value.problem
    assert str(caught.value) == f"{path}: {caught.value.problem}"


@pytest.mark.parametrize("missing", ["data", "model"])
def test_data_and_model_must_be_said(missing: str) -> None:
    with pytest.raises(ConditionError, match="is missing") as caught:
        Condition.parse({name: part for name, part in SMALL.items() if name != missing})
    assert caught.value.path == f"{missing}.name"
