"""What search spaces mean, and what is said about wrong ones."""

# ruff: noqa: E501 - the table of mistakes reads best with one a line

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.space import Resources, SearchSpace, load_space, parse_seed_list

Load = Callable[..., SearchSpace]

BASE = """\
name: example
plugins: [space_components]
seeds: [0, 1]
fixed:
  data: {name: test_shapes}
  train: {epochs: 3, lr: 1e-1}
parameters:
  model.name: {values: [test_small, test_large]}
  trigger.name: {values: [test_stamp, test_veil]}
  trigger.size: {values: [3, 5], when: {trigger.name: test_stamp}}
  poison.rate: {values: [0.01, 0.1]}
exclude: [{model.name: test_large, poison.rate: 0.1}]
include: [{model.name: test_small, trigger.name: test_stamp, trigger.size: 9}]
baselines: true
search: {method: grid}
resources:
  cpu: 1
  overrides: [{when: {model.name: test_large}, gpu: 0.3}]
"""


@pytest.fixture(autouse=True, scope="module")
def components() -> None:
    importlib.import_module("space_components")


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str = BASE, **options: Any) -> SearchSpace:
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return load_space(path, **options)

    return load


def column(space: SearchSpace, path: str) -> set[Any]:
    return {condition.flat().get(path) for condition in space.conditions()}


def ids(space: SearchSpace) -> list[str]:
    return [condition.condition_id for condition in space.conditions()]


def test_counts_and_order(load: Load) -> None:
    space = load()
    # By hand: 2 models x (2 sizes + veil) x 2 rates = 12 cells, 3 excluded, 1 included, 2 baselines; 2 seeds.
    assert len(space.conditions()) == (12 - 3 + 1 + 2) * 2
    assert [c.seed for c in space.conditions()] == [0] * 12 + [1] * 12
    assert space.expansion.excluded == (6,)
    assert ids(space) == ids(load())
    assert all(space.flat(c) == c.flat() for c in space.conditions())


def test_text_says_no_and_numbers_are_numbers(load: Load) -> None:
    space = load(BASE.replace("lr: 1e-1", "lr: 1e-4"))
    assert column(space, "train.lr") == {1e-4}
    styled = load(
        BASE.replace("trigger.size: {values: [3, 5]", "trigger.style: {values: [no, solid]").replace(
            ", trigger.size: 9", ""
        )
    )
    assert column(styled, "trigger.style") == {"no", "solid", None}


def test_rate_zero_on_the_axis_leaves_every_condition_its_twin(load: Load) -> None:
    """Found: a condition at rate 0 was taken for the twin, which has another id: nothing had a floor, and seeds that
    wait for what took waited for ever."""
    space = load(BASE.replace("[0.01, 0.1]", "[0.0, 0.1]").replace("exclude", "# exclude"))
    there = {c.condition_id: c for c in space.conditions()}
    assert {c.role for c in there.values() if c.poison.rate == 0.0} == {"baseline"}
    assert any(c.is_baseline and c.trigger for c in there.values())
    assert all(c.baseline().condition_id in there for c in there.values())
    # It trains no model more.
    at_zero = {c.poison_fingerprint for c in there.values() if c.is_baseline and c.trigger}
    assert at_zero == {c.poison_fingerprint for c in there.values() if c.is_baseline and not c.trigger}


def test_include_alone_is_a_space(load: Load) -> None:
    text = "fixed: {data: test_shapes, model: test_small}\ninclude: [{trigger: test_veil}, {trigger: test_stamp}]\n"
    assert [c.trigger.name for c in load(text).conditions() if c.trigger] == ["test_veil", "test_stamp"]
    assert load(text).name == "space"


def test_fixed_alone_is_one_condition(load: Load) -> None:
    assert len(load("fixed: {data: test_shapes, model: test_small, trigger: test_veil}\n").conditions()) == 1


def test_whole_sections_may_be_values(load: Load) -> None:
    text = """
fixed: {data: test_shapes, model: test_small}
parameters:
  trigger: {values: [{name: test_stamp, size: 4}, {name: test_veil, alpha: 0.5}]}
  train: {lr: {values: [0.1, 0.2], when: {trigger.name: test_veil}}}
"""
    space = load(text)
    assert [c.train.lr for c in space.conditions()] == [0.1, 0.1, 0.2]


def test_zip_advances_together_and_repeats_nothing(load: Load) -> None:
    text = (
        BASE.replace("exclude", "# exclude").replace("include", "# include") + "zip: [[trigger.name, trigger.size]]\n"
    )
    pairs = {(c.flat().get("trigger.name"), c.flat().get("trigger.size")) for c in load(text).conditions()}
    assert pairs == {("test_stamp", 3), ("test_veil", None), (None, None)}


def test_exclude_removes_what_could_not_be_built(load: Load) -> None:
    text = BASE.replace("  data: {name: test_shapes}", "  data: {name: test_shapes, image_size: 16}")
    with pytest.raises(SpaceError, match="at least 32 pixels"):
        load(text)
    text = text.replace("exclude: [{", "exclude: [{model.name: test_large}, {").split("resources:")[0]
    assert column(load(text), "model.name") == {"test_small"}


def test_exclude_sees_defaults_and_shadowed_rules(load: Load) -> None:
    rules = "exclude: [{model.name: test_large}, {finetune.layers: all, model.name: test_large}, {"
    assert load(BASE.replace("exclude: [{", rules).split("resources:")[0]).expansion.excluded[0] == 12


def test_random_draws(load: Load) -> None:
    text = BASE.replace("{values: [0.01, 0.1]}", "{min: 1e-3, max: 0.5, distribution: log_uniform}")
    text = text.replace("method: grid", "method: random, max_trials: 41, seed: 3").replace("exclude", "# exclude")
    text = text.replace("include", "# include").replace("baselines: true", "baselines: false")
    space = load(text)
    rates = sorted(c.poison.rate for c in space.conditions())
    assert len(space.conditions()) == 41
    assert 1e-3 <= rates[0] < 10**-2.2 < 10**-0.9 < rates[-1] <= 0.5
    assert len({c.cell_id for c in space.conditions()}) == 21, "every cell with both seeds, but for the last"
    assert ids(load(text)) == ids(space) != ids(load(text.replace("seed: 3", "seed: 4")))
    assert ids(load(space.to_yaml())) == ids(space)


@pytest.mark.parametrize(
    ("leaf", "allowed"),
    [
        ("{min: 2, max: 4}", {2, 3, 4}),
        ("{min: 2, max: 4, distribution: int_uniform}", {2, 3, 4}),
    ],
)
def test_whole_numbers_are_drawn_with_both_ends(load: Load, leaf: str, allowed: set[int]) -> None:
    text = (
        f"fixed: {{data: test_shapes, model: test_small, trigger: test_veil}}\nparameters: {{train.epochs: {leaf}}}\n"
    )
    assert column(load(text + "search: {method: random, max_trials: 50}\n"), "train.epochs") == allowed


def test_quantized_draws_are_multiples(load: Load) -> None:
    text = "fixed: {data: test_shapes, model: test_small, trigger: test_veil}\nparameters: {train.lr: {min: 0.1, max: 0.5, q: 0.1}}\n"
    assert column(load(text + "search: {method: random, max_trials: 50}\n"), "train.lr") == {0.1, 0.2, 0.3, 0.4, 0.5}


OVERRIDES: list[tuple[list[str], str, set[Any]]] = [
    (["train.epochs=7"], "train.epochs", {7}),
    (["poison.rate=0.2", "baselines=false"], "poison.rate", {0.2}),
    (["trigger={name: test_stamp, size: 2}", "baselines=false"], "trigger.size", {2}),
    (["parameters.poison.rate={values: [0.4]}", "baselines=false", "include=[]"], "poison.rate", {0.4}),
    (["fixed.train.lr=0.5"], "train.lr", {0.5}),
    (["seed=5"], "seed", {5}),
    (["seeds=[5, 6]"], "seed", {5, 6}),
]


@pytest.mark.parametrize(("overrides", "path", "values"), OVERRIDES)
def test_overrides_replace_whatever_the_file_says(
    load: Load, overrides: list[str], path: str, values: set[Any]
) -> None:
    space = load(overrides=overrides)
    assert column(space, path) == values
    assert ids(load(space.to_yaml())) == ids(space)


COMPOUND = """\
fixed: {data: digits, model: resnet8}
parameters:
  trigger: {values: [patch, {name: patch, size: 4}]}
  train: {values: [{epochs: 2, lr: 0.1}, {epochs: 4, lr: 0.2}, {epochs: 4, evaluate.every: 2}]}
  poison: {values: [{rate: 0.05, target: 3}, {rate: 0.05, target: 5}, {rate: 0.08, target: 5}]}
"""


@pytest.mark.parametrize(
    ("override", "varied", "count"),
    [
        ("train.lr=0.05", {"train.lr": {0.05}, "train.epochs": {2, 4}, "train.evaluate.every": {1, 2}}, 18),
        ("train.epochs=3", {"train.epochs": {3}, "train.lr": {0.1, 0.2}, "train.evaluate.every": {1, 2}}, 18),
        ("train.evaluate.every=3", {"train.evaluate.every": {3}, "train.lr": {0.1, 0.2}}, 18),
        ("train={lr: 0.05, epochs: 1}", {"train.epochs": {1}, "train.lr": {0.05}, "train.evaluate.every": {1, 2}}, 12),
        ("poison.rate=0.02", {"poison.rate": {0.02}, "poison.target": {3, 5}}, 12),
        ("poison.strategy=clean_label", {"poison.rate": {0.05, 0.08}, "poison.target": {3, 5}}, 18),
        ("trigger.size=5", {"trigger.size": {5}, "trigger.name": {"patch"}}, 9),
        ("trigger=noise_patch", {"trigger.size": {3}, "trigger.name": {"noise_patch"}}, 9),
        ("trigger.name=blend", {"trigger.name": {"blend"}}, 9),
    ],
)
def test_an_override_of_an_option_leaves_the_others_of_its_axis(
    tmp_path: Path, override: str, varied: dict[str, set[Any]], count: int
) -> None:
    """Found: `--set train.lr` threw away the whole axis `train`, and its epochs became the default."""
    (tmp_path / "space.yaml").write_text(COMPOUND)
    space = load_space(tmp_path / "space.yaml", [override])
    assert {path: column(space, path) for path in varied} == varied
    assert (len(space.conditions()), space.expansion.duplicates) == (count, 0)
    (tmp_path / "frozen.yaml").write_text(space.to_yaml())
    assert load_space(tmp_path / "frozen.yaml").conditions() == space.conditions()


def test_an_axis_of_which_options_are_replaced_stays_in_its_zip_group(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        "fixed: {data: digits, model: resnet8, trigger: patch}\n"
        "parameters: {train: {values: [{epochs: 2, lr: 0.1}, {epochs: 2, lr: 0.2}]}, poison.rate: {values: [0.1, 0.2]}}\n"
        "zip: [[train, poison.rate]]\n"
    )
    conditions = load_space(tmp_path / "space.yaml", ["train.lr=0.05"]).conditions()
    assert [(one.train.epochs, one.train.lr, one.poison.rate) for one in conditions] == [(2, 0.05, 0.1), (2, 0.05, 0.2)]
    conditions = load_space(tmp_path / "space.yaml", ["train={lr: 0.05, epochs: 1}"]).conditions()
    assert [(one.train.epochs, one.poison.rate) for one in conditions] == [(1, 0.1), (1, 0.2)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("[null, patch]", "cannot be set: 'trigger' is null too, which has no options"),
        ("[patch, {name: blend, alpha: 0.2}]", "trigger 'blend' has no option 'size'"),
        ("[patch, blend]", "trigger 'blend' has no option 'size'"),
    ],
)
def test_an_override_that_some_values_of_an_axis_do_not_take_is_refused(tmp_path: Path, values: str, said: str) -> None:
    (tmp_path / "space.yaml").write_text(
        f"fixed: {{data: digits, model: resnet8}}\nparameters: {{trigger: {{values: {values}}}}}\n"
    )
    with pytest.raises(SpaceError, match=said) as raised:
        load_space(tmp_path / "space.yaml", ["trigger.size=5"])
    assert str(raised.value).startswith("--set trigger.size=5: trigger.size: ")


def test_overrides_of_sections(load: Load) -> None:
    space = load(overrides=["search.method=random", "search.max_trials=4", "resources.cpu=2", "name=other"])
    assert (space.search.name, space.resources.default.cpu, space.name) == ("random", 2.0, "other")


def test_only_filters_and_survives_resolving(load: Load) -> None:
    space = load(only=["trigger.name=[test_veil, null]", "seed=1"], seeds="0-1")
    assert column(space, "trigger.name") == {"test_veil", None}
    assert column(space, "seed") == {1}
    assert ids(load(space.to_yaml())) == ids(space)


SINUSOIDS = """\
fixed: {data: digits, model: resnet8, trigger: sinusoid}
parameters:
  trigger.delta: {values: [10, 20, 30]}
"""
DETECTORS = """\
fixed: {data: digits, model: resnet8, trigger: patch, repair: filtered}
parameters:
  repair.detector: {values: [spectral_signatures, activation_clustering, {name: spectral_signatures, expected: 0.2}]}
"""


@pytest.mark.parametrize("written", ["20", f"{20 / 255}"])
def test_rules_mean_levels_and_fractions_alike(load: Load, written: str) -> None:
    assert column(load(SINUSOIDS, only=[f"trigger.delta={written}"]), "trigger.delta") == {20 / 255}
    excluded = load(f"{SINUSOIDS}exclude: [{{trigger.delta: [{written}, 30]}}]")
    assert column(excluded, "trigger.delta") == {10 / 255}
    needy = load(f"{SINUSOIDS}resources: {{overrides: [{{when: {{trigger.delta: {written}}}, cpu: 2}}]}}")
    assert [needy.resources_for(condition).cpu for condition in needy.conditions()] == [1, 2, 1]
    with pytest.raises(SpaceError, match=r"'trigger.delta' is never 21"):
        load(SINUSOIDS, only=["trigger.delta=21"])
    apart = f"exclude: [{{trigger.delta: {written}, train.lr: 0.2}}]"
    with pytest.raises(SpaceError, match="never holds together"):
        load(f"{SINUSOIDS}  train.lr: {{value: 0.2, when: {{trigger.delta: 10}}}}\n{apart}")


def test_a_when_means_levels_where_an_axis_has_fractions(load: Load) -> None:
    text = SINUSOIDS.replace("20", f"{20 / 255}") + "  train.epochs: {value: 3, when: {trigger.delta: 20}}\n"
    assert [condition.train.epochs for condition in load(text).conditions()] == [30, 3, 30]


def test_a_rule_about_a_value_sees_the_default_that_is_the_same(load: Load) -> None:
    values = "[{name: sinusoid, delta: 20}, {name: sinusoid, frequency: 3}, {name: sinusoid, delta: 40}]"
    text = f"fixed: {{data: digits, model: resnet8}}\nparameters:\n  trigger: {{values: {values}}}\n"
    assert column(load(f"{text}exclude: [{{trigger.delta: 20}}]"), "trigger.delta") == {40 / 255}


def test_rules_name_a_picture_as_an_axis_does(load: Load, tmp_path: Path) -> None:
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / name)
    text = "fixed: {data: digits, model: resnet8, trigger.name: image}\n"
    text += "parameters:\n  trigger.path: {values: [a.png, b.png]}\n  train.lr: {values: [0.1, 0.2]}\n"
    assert column(load(text, only=["trigger.path=a.png"]), "trigger.path") == {str(tmp_path / "a.png")}
    excluded = load(f"{text}exclude: [{{trigger.path: a.png, train.lr: 0.1}}, {{trigger.path: b.png}}]")
    assert [c.train.lr for c in excluded.conditions()] == [0.2]
    needy = load(f"{text}resources: {{overrides: [{{when: {{trigger.path: b.png}}, cpu: 2}}]}}")
    assert [needy.resources_for(c).cpu for c in needy.conditions()] == [1, 1, 2, 2]


def test_rules_name_a_detector_as_an_axis_does(load: Load) -> None:
    space = load(DETECTORS, only=["repair.detector=spectral_signatures"])
    assert [(c.flat()["repair.detector.name"], c.flat()["repair.detector.expected"]) for c in space.conditions()] == [
        ("spectral_signatures", 0.1)
    ]
    space = load(f"{DETECTORS}exclude: [{{repair.detector: [spectral_signatures, activation_clustering]}}]")
    assert [c.flat()["repair.detector.expected"] for c in space.conditions()] == [0.2]
    with pytest.raises(SpaceError, match=r"no condition has 'repair.detector'"):
        load(DETECTORS, only=["repair.detector=spectral"])


@pytest.mark.parametrize("only", ["trigger.name=test_veil", "poison.rate=0.1"])
@pytest.mark.parametrize("search", ["grid", "pairwise"])
def test_only_keeps_the_twins_of_what_it_leaves(load: Load, only: str, search: str) -> None:
    options = [f"search.method={search}", "baselines=true"]
    whole, space = load(overrides=options), load(overrides=options, only=[only])
    left = space.conditions()
    poisoned = [condition for condition in left if not condition.is_baseline]
    assert 0 < len(poisoned) < len([condition for condition in whole.conditions() if not condition.is_baseline])
    twins = {condition.baseline().condition_id for condition in poisoned}
    assert {condition.condition_id for condition in left if condition.is_baseline} == twins
    assert ids(load(space.to_yaml())) == ids(space)
    none = load(overrides=[options[0], "baselines=false"], only=[only])
    assert [condition for condition in none.conditions() if condition.is_baseline] == []


def test_only_takes_twins_out_by_what_they_have(load: Load) -> None:
    space = load(overrides=["baselines=true"], only=["trigger.name=test_veil", "seed=1"], seeds="0-1")
    assert {(condition.role, condition.seed) for condition in space.conditions()} == {("poisoned", 1), ("baseline", 1)}


def test_seed_lists() -> None:
    assert parse_seed_list("0,2, 4-6") == [0, 2, 4, 5, 6]
    for wrong in ("", "a", "3-1", "1,,2", "-1", "0-99999999"):
        with pytest.raises(SpaceError, match="--seeds"):
            parse_seed_list(wrong)


@pytest.mark.parametrize(("written", "limit"), [("5", 5.0), ("0.25", 0.25), ("null", None), (None, 20.0)])
def test_the_limit_of_kept_stages_survives_being_written(load: Load, written: str | None, limit: float | None) -> None:
    space = load(BASE if written is None else BASE.replace("  cpu: 1", f"  cpu: 1\n  stage_cache_gb: {written}"))
    assert space.resources.stage_cache_gb == limit
    assert load(space.to_yaml()).resources.stage_cache_gb == limit


def test_resources_are_resolved_for_every_condition(load: Load) -> None:
    space = load()
    for condition in space.conditions():
        large = condition.model.name == "test_large"
        assert space.resources_for(condition) == Resources(1.0, 1 / 3 if large else "auto")


# (replace this, with this, on this line, path, words that are said)
WRONG: list[tuple[str, str, int, str, str]] = [
    ("seeds:", "seedz:", 3, "seedz", "did you mean 'seeds'"),
    ("[0, 1]", "[0, 0]", 3, "seeds", "listed twice"),
    ("[0, 1]", "[0, true]", 3, "seeds", "whole numbers"),
    ("[0, 1]", "[]", 3, "seeds", "empty"),
    ("seeds: [0, 1]", "seeds: 3", 3, "seeds", "must be a list"),
    ("[space_components]", "[no_such_module]", 2, "plugins", "cannot be imported"),
    ("[space_components]", "['../x']", 2, "plugins", "module's name"),
    ("name: example", "name: ../x", 1, "name", "letters"),
    ("epochs: 3", "epoch: 3", 6, "train.epoch", "did you mean 'epochs'"),
    ("epochs: 3", "epochs: 3, epochs: 4", 6, "epochs", "duplicate key"),
    ("epochs: 3", "epochs: {}, seed: 3", 6, "train.seed", "no option 'seed'"),
    ("train: {", "trein: {", 6, "trein", "did you mean 'train'"),
    ("data: {name: test_shapes}", "data.name: test_shapez", 5, "data.name", "did you mean 'test_shapes'"),
    ("data: {name: test_shapes}", "data.root: x", 5, "data.name", "no data set is named"),
    (
        "data: {name: test_shapes}",
        "data: {nme: test_shapes}",
        5,
        "data.nme",
        "no data set is named; did you mean 'name'?",
    ),
    ("  model.name: {", "  model.nam: {", 8, "model.nam", "no model is named; did you mean 'name'?"),
    ("epochs: 3", "epoch: 3", 6, "train.epoch", "train has no option 'epoch'"),
    ("  data: {name", "  seed: 3\n  data: {name", 5, "seed", "under `seeds`"),
    ("  data: {name", "  data.name: x\n  data: {name", 6, "data.name", "given twice"),
    ("[3, 5]", "[3, abc]", 10, "trigger.size", "valid integer"),
    ("[3, 5]", "[\n    3,\n    abc]", 12, "trigger.size", "valid integer"),
    ("[3, 5]", "[]", 10, "trigger.size.values", "empty"),
    ("{values: [3, 5], when: {trigger.name: test_stamp}}", "[3]", 10, "trigger.size", "{values: [...]}"),
    ("{values: [3, 5], when: {trigger.name: test_stamp}}", "3", 10, "trigger.size", "{value: 3}"),
    ("values: [3, 5]", "values: [3, 5], min: 1", 10, "trigger.size", "cannot have"),
    (
        "{values: [0.01, 0.1]}",
        "{vals: [0.01, 0.1]}",
        11,
        "poison.rate.vals",
        "or, as a key of 'poison.rate': did you mean 'values'?",
    ),
    ("values: [3, 5]", "value: 3, vals: [1]", 10, "trigger.size.vals", "did you mean 'value"),
    (", when: {trigger.name: test_stamp}", "", 10, "trigger.size", "when: {trigger.name: test_stamp}"),
    (
        "{trigger.name: test_stamp}}",
        "{trigger.name: test_stam}}",
        10,
        "trigger.size.when.trigger.name",
        "did you mean 'test_stamp'",
    ),
    (
        "{trigger.name: test_stamp}}",
        "{trigger.nam: test_stamp}}",
        10,
        "trigger.size.when.trigger.nam",
        "did you mean 'trigger.name'",
    ),
    ("{trigger.name: test_stamp}}", "{trigger.size: 3}}", 10, "trigger.size", "circle"),
    ("poison.rate: {", "poisn.rate: {", 11, "poisn.rate", "did you mean 'poison'"),
    ("poison.rate: {", "train.epochs: {", 11, "train.epochs", "is fixed on line 6 already"),
    ("poison.rate: {", "poison..rate: {", 11, "poison..rate", "a part of it is empty"),
    ("poison.rate: {", "seed: {", 11, "seed", "under `seeds`"),
    ("{values: [0.01, 0.1]}", "{values: [0.01, 1.1]}", 11, "poison.rate", "less than or equal to 1"),
    ("{values: [0.01, 0.1]}", "{min: 0.1, max: 0.2}", 11, "poison.rate", "search.method: random"),
    ("{values: [0.01, 0.1]}", "{min: 0.2, max: 0.1}", 11, "poison.rate.max", "greater than min"),
    ("{values: [0.01, 0.1]}", "{min: 0, max: 0.1, distribution: log_uniform}", 11, "poison.rate.min", "greater than 0"),
    (
        "{values: [0.01, 0.1]}",
        "{min: 0, max: 0.1, distribution: unifrm}",
        11,
        "poison.rate.distribution",
        "did you mean 'uniform'",
    ),
    ("{values: [0.01, 0.1]}", "{min: 0.1}", 11, "poison.rate", "max is missing"),
    (
        "model.name: test_large, poison.rate: 0.1",
        "model.name: test_lage",
        12,
        "exclude.model.name",
        "did you mean 'test_large'",
    ),
    ("model.name: test_large, poison.rate: 0.1", "model.nam: x", 12, "exclude.model.nam", "did you mean 'model.name'"),
    (
        "model.name: test_large, poison.rate: 0.1",
        "trigger.size: 3, trigger.name: test_veil",
        12,
        "exclude",
        "never holds together",
    ),
    ("{model.name: test_large, poison.rate: 0.1}", "{}", 12, "exclude[0]", "match everything"),
    ("model.name: test_large, poison.rate: 0.1", "poison.rate: [0.01, 0.1]", 1, "exclude", "nothing is left"),
    ("trigger.size: 9", "trigger.alpha: 1", 13, "trigger.alpha", "no option 'alpha'"),
    ("baselines: true", "baselines: yes", 14, "baselines", "true or false"),
    (
        "method: grid",
        "method: optunna",
        15,
        "search.method",
        "there is no search method 'optunna'",
    ),
    ("method: grid", "method: random", 15, "search.max_trials", "needs max_trials"),
    ("method: grid", "method: grid, max_trials: 3", 15, "search.max_trials", "belongs to `method: random`"),
    ("method: grid", "metod: grid", 15, "search.metod", "did you mean 'method'"),
    ("cpu: 1", "cpu: 0", 17, "resources.cpu", "greater than 0"),
    ("cpu: 1", "cpu: true", 17, "resources.cpu", "'auto' or a number"),
    ("cpu: 1", "decided: {precision: float16}", 17, "resources.decided.precision", "'float32'"),
    ("cpu: 1", "decided: {because: {cpu: 1}}", 17, "resources.decided.because.cpu", "string"),
    ("cpu: 1", "stage_cache_gb: 0", 17, "resources.stage_cache_gb", "above 0, or null"),
    ("cpu: 1", "stage_cache_gb: yes", 17, "resources.stage_cache_gb", "above 0, or null"),
    ("cpu: 1", "cpus: 0", 17, "resources.cpus", "did you mean 'cpu'"),
    ("gpu: 0.3", "gpu: -1", 18, "resources.overrides[0].gpu", "number from 0"),
    ("gpu: 0.3", "gpu: alot", 18, "resources.overrides[0].gpu", "'auto'"),
    (
        "{model.name: test_large}, gpu",
        "{model.name: huge}, gpu",
        18,
        "resources.overrides.when.model.name",
        "is never huge",
    ),
    ("search: {", "zip: [[poison.rate, trigger.nme]]\nsearch: {", 15, "zip[0]", "did you mean 'trigger.name'"),
    ("search: {", "zip: [[poison.rate]]\nsearch: {", 15, "zip[0]", "at least two"),
    ("search: {", "only: [{model.name: x}]\nsearch: {", 15, "only.model.name", "leaves nothing"),
    (
        "search: {",
        "only: [{model.name: 'test_small,test_large'}]\nsearch: {",
        15,
        "only.model.name",
        "are a list: [test_small",
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "path", "said"), WRONG, ids=[wrong[1] for wrong in WRONG])
def test_mistakes_are_named_with_their_line(load: Load, old: str, new: str, *, line: int, path: str, said: str) -> None:
    assert old in BASE
    with pytest.raises(SpaceError) as caught:
        load(BASE.replace(old, new, 1))
    assert said in caught.value.problem
    assert "train.train" not in caught.value.problem
    assert (caught.value.line, caught.value.path) == (line, path)
    assert caught.value.file.endswith("space.yaml")


def test_unequal_zip_lengths_are_shown(load: Load) -> None:
    text = BASE.replace("[0.01, 0.1]", "[0.01, 0.1, 0.2]") + "zip: [[poison.rate, trigger.name]]\n"
    with pytest.raises(SpaceError, match=r"poison\.rate has 3, trigger\.name has 2"):
        load(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overrides": ["trigger.size=abc"]}, "--set trigger.size=abc: trigger.size: should be a valid integer"),
        ({"overrides": ["tran.epochs=1"]}, "did you mean 'train'"),
        ({"overrides": ["epochs"]}, "must be --set path=value"),
        ({"overrides": ["train.epochs=[1"]}, "is not valid YAML"),
        ({"overrides": ["search.metod=grid"]}, "did you mean 'method'"),
        ({"only": ["model.nam=x"]}, "did you mean 'model.name'"),
        ({"only": ["model.name=test_smal"]}, "did you mean 'test_small'"),
        ({"only": ["tigger.name=x"]}, "did you mean 'trigger'"),
        ({"seeds": [-1]}, "whole numbers"),
    ],
)
def test_mistakes_of_the_command_line_are_named(load: Load, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpaceError) as caught:
        load(**options)
    assert said in str(caught.value)
    assert "space.yaml" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- 1\n", "text\n", "{}\n", "a: b: c\n"])
def test_what_is_no_space(load: Load, text: str) -> None:
    with pytest.raises(SpaceError, match=r"space\.yaml"):
        load(text)


def test_a_grid_that_would_fill_the_memory_is_refused(load: Load) -> None:
    values = list(range(1, 300))
    axes = "".join(
        f"  {path}: {{values: {values}}}\n" for path in ("train.batch_size", "finetune.batch_size", "finetune.epochs")
    )
    with pytest.raises(SpaceError, match="more than 200,000 conditions"):
        load(BASE.replace("parameters:\n", f"parameters:\n{axes}"))


def test_twenty_thousand_conditions_validate_each_section_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = f"  train.lr: {{values: {[i / 100 for i in range(1, 41)]}}}\n  finetune.lr: {{values: {[i / 100 for i in range(1, 31)]}}}\n"
    text = BASE.replace("parameters:\n", f"parameters:\n{axes}").replace(", lr: 1e-1", "")
    parse, check, parsed, checked = Condition.parse, Condition.check, list[object](), list[object]()
    monkeypatch.setattr(Condition, "parse", lambda content: parsed.append(content) or parse(content))
    monkeypatch.setattr(Condition, "check", lambda condition: checked.append(condition) or check(condition))
    assert len(load(text).conditions()) > 20_000
    # A section is 40 values of train, 30 of finetune, or one of at most 20 others.
    assert 40 <= len(parsed) < 100
    assert 0 < len(checked) < 3000
