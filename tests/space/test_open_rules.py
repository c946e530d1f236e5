"""Rules of a search that looks at results: what it may ask for is known from the space, not from some examples."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.space import SearchSpace, load_space
from bdray.space.dry_run import make_plan

Load = Callable[..., SearchSpace]

SPACE: dict[str, Any] = {
    "seeds": [0],
    "fixed": {"data": "digits"},
    "parameters": {
        "model.name": {"values": ["resnet8", "resnet20", "resnet18", "resnet50"]},
        "trigger.name": {"values": ["patch", "blend", "sinusoid"]},
        "trigger.size": {"min": 1, "max": 24, "when": {"trigger.name": "patch"}},
        "trigger.delta": {"values": [10, 20], "when": {"trigger.name": "sinusoid"}},
        "poison.rate": {"min": 0.01, "max": 0.3, "distribution": "log_uniform"},
    },
    "search": {"method": "optuna", "max_trials": 60},
}
PATCH = {"data": "digits", "model": "resnet8", "trigger": "patch"}
RATE = {"poison.rate": {"min": 0.01, "max": 0.3, "distribution": "log_uniform"}}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(options: dict[str, Any] | None = None, **keys: Any) -> SearchSpace:
        path = tmp_path / "space.yaml"
        path.write_text(yaml.safe_dump({**SPACE, **keys}))
        return load_space(path, **(options or {}))

    return load


def overrides(*whens: dict[str, Any]) -> dict[str, Any]:
    return {"overrides": [{"when": when, "cpu": 8} for when in whens]}


RARE: list[dict[str, Any]] = [
    {"model.name": model, "trigger.name": "patch", "trigger.size": size}
    for model in ("resnet8", "resnet20", "resnet18", "resnet50")
    for size in (1, 8, 24)
]
POSSIBLE: list[dict[str, Any]] = [
    *RARE,
    {"trigger.delta": 10 / 255, "model.name": "resnet50"},
    {"trigger.alpha": 0.2, "model.name": "resnet50"},
    {"poison.rate": 0.1},
    {"poison.target": "0", "model.name": "resnet50"},
    {"train.lr": [0.1, 0.2], "trigger.size": 23},
    {"trigger": None},
]


@pytest.mark.parametrize("search", [SPACE["search"], {"method": "boundary", "parameter": "poison.rate"}])
def test_overrides_that_may_be_met_stay(search: dict[str, Any], load: Load, tmp_path: Path) -> None:
    """Found: most of those that met none of forty drawn conditions were dropped without a word."""
    sizes = {"values": [1, 8, 23, 24], "when": {"trigger.name": "patch"}}
    rules = overrides(*POSSIBLE)
    baselines = {"baselines": True, "search": search, "resources": rules}
    space = load(parameters={**SPACE["parameters"], "trigger.size": sizes}, **baselines)
    assert space.resolved()["resources"]["overrides"] == [{"when": when, "cpu": 8.0} for when in POSSIBLE]
    rare = {"model": {"name": "resnet50"}, "trigger": {"name": "patch", "size": 24}}
    assert space.resources_for(Condition.parse({**space.shown()[0].content(), **rare})).cpu == 8


MISTAKES = [
    ({"model.name": "resnet500"}, "model.name", "'model.name' is never resnet500; did you mean 'resnet50'?"),
    ({"model.name": "resnet8", "trigger.size": 30}, "trigger.size", "is never 30; it is drawn from 1 to 24"),
    ({"trigger.size": [2.5, 30]}, "trigger.size", "it is drawn from 1 to 24"),
    ({"trigger.delta": 30}, "trigger.delta", "is never 30"),
    ({"trigger.name": "zzz"}, "trigger.name", "is never zzz; known: blend, patch, sinusoid"),
    ({"trigger.siz": 2}, "trigger.siz", "no condition has 'trigger.siz'; did you mean 'trigger.size'?"),
    ({"train.epochs": 7_000}, "train.epochs", "is never 7000"),
]


@pytest.mark.parametrize(("rule", "path", "said"), MISTAKES)
@pytest.mark.parametrize("key", ["resources.overrides.when", "exclude", "only"])
def test_what_no_condition_can_meet_is_named(key: str, rule: dict[str, Any], path: str, said: str, load: Load) -> None:
    """Found: of a search that looks at results, misspelt values of `exclude` and of overrides were taken."""
    keys: dict[str, Any] = {"resources": overrides(rule)} if key.startswith("resources") else {key: [rule]}
    with pytest.raises(SpaceError) as caught:
        load(**keys)
    assert f": {key}.{path}: " in str(caught.value) and said in str(caught.value)
    assert "space.yaml:" in str(caught.value)


def test_what_the_command_line_made_impossible_is_left_out(load: Load) -> None:
    rules = overrides({"trigger.name": "blend", "model.name": "resnet50"}, {"model.name": "resnet50"})
    space = load({"overrides": ["trigger.name=patch"]}, resources=rules, exclude=[{"trigger.name": "blend"}])
    assert [rule.plain() for rule, _ in space.resources.overrides] == [{"model.name": "resnet50"}]
    assert space.exclude == ()


@pytest.mark.parametrize("only", [["trigger.size=2"], ["trigger.size=17", "model.name=resnet50"]])
def test_only_leaves_what_is_seldom_drawn(only: list[str], load: Load) -> None:
    """Found: `--only trigger.size=2` was refused as what never is, where 1 to 24 are drawn."""
    space = load({"only": only})
    assert space.expansion.examples
    assert {space.flat(condition)["trigger.size"] for condition in space.shown()} == {int(only[0][-2:].strip("="))}


def test_only_that_no_draw_meets_shows_none(load: Load) -> None:
    space = load({"only": ["poison.rate=0.1"]})
    plan = make_plan(space)
    assert plan.conditions == () and "the search may have nothing to run" in plan.notes[1]
    cell = {"model.name": "resnet8", "trigger.name": "blend", "poison.rate": 0.5}
    assert len(load({"only": ["poison.rate=0.5"]}, include=[cell]).conditions()) == 1
    with pytest.raises(SpaceError, match=r"only.poison.rate: leaves nothing: 'poison.rate' is never 0.5; it is drawn"):
        load({"only": ["poison.rate=0.5"]})


def optuna(**keys: Any) -> dict[str, Any]:
    return {"method": "optuna", "max_trials": 6, **keys}


def boundary(**keys: Any) -> dict[str, Any]:
    return {"method": "boundary", "parameter": "poison.rate", **keys}


@pytest.mark.parametrize(
    ("search", "path", "said"),
    [
        (
            optuna(metrics=["maximize repared/took", "minimize poison.rat"]),
            "search.metrics",
            "there is no metric 'repared/took'; did you mean 'repaired/took'?",
        ),
        (
            optuna(metrics=["maximize took", "maximize repared/clean_accuracy"]),
            "search.metrics",
            "no condition has 'repared/clean_accuracy'; did you mean 'repaired/clean_accuracy'?",
        ),
        (
            optuna(metrics=["minimize poison.rat"]),
            "search.metrics",
            "no condition has a number 'poison.rat'; did you mean 'poison.rate'?",
        ),
        (optuna(metrics=["minimize model.name"]), "search.metrics", "no condition has a number 'model.name'"),
        (
            optuna(constraints=["finetune/clean_accuracy >= 0.5"]),
            "search.constraints",
            "no condition has 'finetune/clean_accuracy'; did you mean 'finetuned/clean_accuracy'?",
        ),
        (
            boundary(metric="repared/robust_accuracy"),
            "search.metric",
            "no condition has 'repared/robust_accuracy'; did you mean 'repaired/robust_accuracy'?",
        ),
        (boundary(metric="trigger/psnr_db"), "search.metric", "trigger/psnr_db, which has no bounds: name a rate"),
        (boundary(metric="poison.rat"), "search.metric", "poison.rat, which has no bounds: name a rate"),
        (boundary(parameter="poison.rat"), "search.parameter", "min and max above 0; did you mean 'poison.rate'?"),
        (optuna(method="optunna", metrics=["took"]), "search.method", "did you mean 'optuna'?"),
    ],
)
def test_what_a_search_looks_at_must_be_there(search: dict[str, Any], path: str, said: str, load: Load) -> None:
    """Found: a misspelt stage or path cost the whole search, of which no trial had a value."""
    with pytest.raises(SpaceError) as caught:
        load(fixed=PATCH, parameters=RATE, search=search)
    assert re.search(rf"space.yaml:\d+: {path}: ", str(caught.value)) and said in str(caught.value)


def test_what_seeds_are_added_for_must_be_there(load: Load) -> None:
    seeds = {"min": 4, "max": 20, "until": {"metric": "repared/attack_success_rate", "above": 0.3}}
    with pytest.raises(SpaceError) as caught:
        load(fixed=PATCH, parameters={"poison.rate": {"values": [0.1]}}, search=None, seeds=seeds)
    assert re.search(r"space.yaml:\d+: seeds.until.metric: no condition has", str(caught.value))
    assert "did you mean 'repaired/attack_success_rate'?" in str(caught.value)


def test_what_some_stage_leaves_may_be_looked_at(load: Load) -> None:
    goals = ["maximize finetuned/attack_success_rate", "minimize poison.rate", "minimize trigger/l_inf"]
    load(fixed=PATCH, parameters=RATE, search=optuna(metrics=goals, constraints=["repaired/clean_accuracy_drop <= 1"]))
    load({"overrides": ["search.parameter=poison.rate"]}, fixed=PATCH, parameters=RATE, search=boundary(parameter="x"))
    with pytest.raises(SpaceError, match=r"^--set search.parameter=rate: search.parameter: 'rate' must be"):
        load({"overrides": ["search.parameter=rate"]}, fixed=PATCH, parameters=RATE, search=boundary())


TOGETHER: list[dict[str, Any]] = [
    {"trigger.name": "blend", "trigger.size": 3},
    {"trigger.name": "sinusoid", "trigger.size": [3, 5]},
    {"trigger.name": ["patch", "blend"], "trigger.delta": 10},
    {"model.name": "resnet50", "train.epochs": 2},
]
ZIPPED = {
    "parameters": {**SPACE["parameters"], "train.epochs": {"values": [2, 3, 4, 5]}},
    "zip": [["model.name", "train.epochs"]],
}


@pytest.mark.parametrize("rule", TOGETHER)
@pytest.mark.parametrize("key", ["resources.overrides.when", "exclude", "only"])
def test_what_never_holds_together_is_named(key: str, rule: dict[str, Any], load: Load) -> None:
    """Found: only each entry by itself was looked at, and the rule did nothing."""
    keys: dict[str, Any] = {"resources": overrides(rule)} if key.startswith("resources") else {key: [rule]}
    with pytest.raises(SpaceError, match=rf"space.yaml:\d+: {key}: .* never holds together"):
        load(baselines=True, **ZIPPED, **keys)


def test_what_holds_together_stays(load: Load) -> None:
    rules: list[dict[str, Any]] = [
        {"model.name": "resnet50", "train.epochs": 5, "trigger.delta": 20 / 255},
        {"model.name": "resnet50", "trigger": None},
        {"trigger.name": "patch", "trigger.size": 24, "train.epochs": 3},
    ]
    space = load(baselines=True, resources=overrides(*rules), **ZIPPED)
    assert [rule.plain() for rule, _ in space.resources.overrides] == rules


def test_a_rule_may_be_about_seeds_that_come_later(load: Load) -> None:
    """Found: of a grid with `seeds: {min, max, until}` it was refused, as none of the first seeds had it."""
    until = {"metric": "attack_success_rate", "half_width": 0.45}
    grid = {"search": None, "fixed": PATCH, "parameters": {"poison.rate": {"values": [0.1]}}}
    seeds = {"min": 4, "max": 20, "until": until}
    space = load(seeds=seeds, resources=overrides({"seed": [7, 30]}, {"seed": 19, "poison.rate": 0.1}), **grid)
    assert len(space.resources.overrides) == 2
    with pytest.raises(SpaceError, match="'seed' is never 20"):
        load(seeds=seeds, resources=overrides({"seed": 20}), **grid)


def test_a_metric_that_few_cells_have_may_be_looked_at(load: Load) -> None:
    """Found: it was refused where none of forty drawn cells had it."""
    rates = {"values": [0.01 + 0.001 * step for step in range(120)]}
    rare = {"repair.name": {"values": ["finetune", "fine_pruning"], "when": {"poison.rate": 0.129}}}
    space = {"fixed": PATCH, "parameters": {"poison.rate": rates, **rare}}
    load(search=optuna(metrics=["maximize pruned/clean_accuracy"]), **space)
    with pytest.raises(SpaceError, match="no condition has 'prned/clean_accuracy'"):
        load(search=optuna(metrics=["maximize prned/clean_accuracy"]), **space)
