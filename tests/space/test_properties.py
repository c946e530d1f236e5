"""Random search spaces against a brute-force enumeration that shares no code with the expansion."""

from __future__ import annotations

import importlib
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import strategies as st
from properties import examples

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.space import SearchSpace, load_space, pairwise_subset


@pytest.fixture(autouse=True, scope="module")
def components() -> None:
    importlib.import_module("space_components")


AXES: dict[str, list[Any]] = {
    "model.name": ["test_small", "test_large"],
    "trigger.name": ["test_stamp", "test_veil"],
    "trigger.size": [1, 3, 4],
    "trigger.alpha": [0.2, 0.5],
    "poison.rate": [0.0, 0.1, 0.3],
    "train.epochs": [2, 3, 5],
    "train.lr": [0.1, 0.25],
    "finetune.fraction": [0.05, 0.1],
    "regularizer.name": ["none", "test_squeeze"],
}
NEEDED = {"trigger.size": {"trigger.name": "test_stamp"}, "trigger.alpha": {"trigger.name": "test_veil"}}
# Later paths may ask about earlier ones, so that there is never a cycle.
MAY_ASK = ["model.name", "poison.rate", "train.epochs", "train.lr", "finetune.fraction"]


@st.composite
def grammars(draw: st.DrawFn) -> dict[str, Any]:
    chosen = ["trigger.name", *draw(st.lists(st.sampled_from(sorted(set(AXES) - {"trigger.name"})), unique=True))]
    parameters: dict[str, Any] = {}
    for path in chosen:
        values = draw(st.lists(st.sampled_from(AXES[path]), min_size=1, max_size=3, unique=path != "train.epochs"))
        parameters[path] = {"values": values}
        earlier = [other for other in MAY_ASK if other in parameters and other != path]
        if path in NEEDED:
            parameters[path]["when"] = NEEDED[path]
        elif path in MAY_ASK and earlier and draw(st.booleans()):
            asked = draw(st.sampled_from(earlier))
            wanted = draw(st.lists(st.sampled_from(AXES[asked]), min_size=1, max_size=2, unique=True))
            parameters[path]["when"] = {asked: wanted if len(wanted) > 1 else wanted[0]}
    parameters = {path: parameters[path] for path in draw(st.permutations(list(parameters)))}
    free = [path for path in parameters if path not in NEEDED]
    pairs = [
        [a, b]
        for a, b in itertools.combinations(free, 2)
        if len(parameters[a]["values"]) == len(parameters[b]["values"])
    ]
    rule = st.sampled_from(sorted(AXES)).flatmap(lambda path: st.tuples(st.just(path), st.sampled_from(AXES[path])))
    cell = st.fixed_dictionaries(
        {"trigger.name": st.just("test_stamp")},
        optional={"trigger.size": st.just(9), "train.epochs": st.sampled_from([2, 7]), "poison.rate": st.just(0.0)},
    )
    return {
        "plugins": ["space_components"],
        "seeds": draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)),
        "fixed": {"data": {"name": "test_shapes"}, **fixed_model(parameters)},
        "parameters": parameters,
        "zip": draw(st.lists(st.sampled_from(pairs), max_size=1)) if pairs else [],
        "exclude": draw(st.lists(st.lists(rule, min_size=1, max_size=2).map(dict), max_size=2)),
        "include": [] if "model.name" in parameters else draw(st.lists(cell, max_size=2)),
        "baselines": draw(st.booleans()),
    }


def fixed_model(parameters: dict[str, Any]) -> dict[str, Any]:
    """Every condition needs a model; a parameter with `when` takes the place of the fixed one where it holds."""
    everywhere = "model.name" in parameters and "when" not in parameters["model.name"]
    return {} if everywhere else {"model.name": "test_small"}


def parsed(flat: dict[str, Any]) -> Condition:
    content: dict[str, Any] = {}
    for path, value in flat.items():
        if path == "seed":
            content["seed"] = value
        else:
            section, option = path.split(".")
            content.setdefault(section, {})[option] = value
    return Condition.parse(content)


def holds(rule: dict[str, Any], flat: dict[str, Any]) -> bool:
    wanted = {path: value if isinstance(value, list) else [value] for path, value in rule.items()}
    return all(path in flat and flat[path] in values for path, values in wanted.items())


def brute_force(grammar: dict[str, Any]) -> set[str] | None:
    """The ids of all conditions, or None where the grammar asks for something that never happens."""
    parameters = grammar["parameters"]
    fixed = {"data.name": "test_shapes", **fixed_model(parameters)}
    spans = {path: range(len(leaf["values"])) for path, leaf in parameters.items()}
    met: set[str] = set()
    grid: list[dict[str, Any]] = []
    for seed, *indices in itertools.product(grammar["seeds"], *spans.values()):
        index = dict(zip(spans, indices, strict=True))
        if any(index[a] != index[b] for a, b in grammar["zip"]):
            continue
        flat = {**fixed, "seed": seed}
        for _ in parameters:  # until nothing changes: `when` may chain, over values that replace fixed ones
            present = [path for path, leaf in parameters.items() if holds(leaf.get("when", {}), flat)]
            flat = {**fixed, "seed": seed, **{path: parameters[path]["values"][index[path]] for path in present}}
        met.update(present)
        grid.append(flat)
    if met != set(parameters):
        return None
    kept, matched = [], set()
    for flat in grid:
        condition = parsed(flat)
        hits = [i for i, rule in enumerate(grammar["exclude"]) if holds(rule, condition.flat())]
        matched.update(hits)
        if not hits:
            kept.append(condition)
    if len(matched) < len(grammar["exclude"]) or not kept:
        return None
    for cell, seed in itertools.product(grammar["include"], grammar["seeds"]):
        kept.append(parsed({**fixed, **cell, "seed": seed}))
    ids = {condition.condition_id for condition in kept}
    if grammar["baselines"]:
        controls = {c.condition_id for c in kept if c.is_baseline}
        ids |= {c.baseline().condition_id for c in kept} - controls
    return ids


def load(content: dict[str, Any] | bytes, **options: Any) -> SearchSpace:
    with tempfile.TemporaryDirectory() as folder, patch.object(sys, "path", [*sys.path]):
        path = Path(folder) / "space.yaml"
        path.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content, sort_keys=False).encode())
        return load_space(path, **options)


@examples(25, 200, grammars())
def test_conditions_are_those_of_brute_force(grammar: dict[str, Any]) -> None:
    expected = brute_force(grammar)
    if expected is None:
        with pytest.raises(SpaceError):
            load(grammar)
        return
    try:
        space = load(grammar)
    except SpaceError as error:
        # Zipping may close a circle: a asks about b, and b advances with c, which asks about a.
        assert grammar["zip"]
        assert "circle" in error.problem
        return
    ids = [condition.condition_id for condition in space.conditions()]
    assert set(ids) == expected
    assert len(ids) == len(expected)
    again = load(space.to_yaml().encode())
    assert [condition.condition_id for condition in again.conditions()] == ids


@examples(10, 50, grammars(), st.integers(0, 5), st.integers(1, 30))
def test_random_draws_are_distinct_conditions_of_the_grid(grammar: dict[str, Any], seed: int, wanted: int) -> None:
    grammar = {**grammar, "zip": [], "exclude": [], "include": [], "baselines": False}
    expected = brute_force(grammar)
    if expected is None:
        return
    search = {"method": "random", "max_trials": wanted, "seed": seed}
    ids = [condition.condition_id for condition in load({**grammar, "search": search}).conditions()]
    assert len(set(ids)) == len(ids) == min(wanted, len(expected))
    assert set(ids) <= expected


def pairs_of(conditions: list[Condition]) -> set[Any]:
    return {pair for c in conditions for pair in itertools.combinations(sorted(map(repr, c.flat().items())), 2)}


@examples(5, 30, grammars())
def test_pairwise_covers_every_pair(grammar: dict[str, Any]) -> None:
    grammar = {**grammar, "zip": [], "exclude": [], "include": [], "baselines": False}
    if brute_force(grammar) is None:
        return
    full = load(grammar).conditions()
    subset = pairwise_subset(full)
    assert pairs_of(subset) == pairs_of(full)
    assert [c for c in full if c in subset] == subset
    method = load({**grammar, "search": {"method": "pairwise"}}).conditions()
    assert pairs_of(method) == pairs_of(full)


BASE = b"""name: base
plugins: []
seeds: [0, 1]
fixed:
  data: {name: test_shapes}
  model: {name: test_small}
parameters:
  trigger.name: {values: [test_stamp, test_veil]}
  trigger.size: {values: [3, 5], when: {trigger.name: test_stamp}}
  poison: {rate: {values: [0.01, 0.1]}}
zip: [[poison.rate, trigger.name]]
exclude: [{poison.rate: 0.1, seed: 1}]
include: [{trigger: {name: test_veil, alpha: 0.3}}]
baselines: true
search: {method: grid}
resources: {cpu: 1, gpu: auto, overrides: [{when: {trigger.name: test_stamp}, gpu: 0.5}]}
tracking: {experiment: x}
"""


def survives(content: bytes) -> None:
    """Loading is a success or a `SpaceError` with something to say; anything else fails the test."""
    try:
        assert load(content).conditions()
    except SpaceError as error:
        assert error.problem


@examples(50, 300, st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_give_a_space_or_an_explanation(content: bytes) -> None:
    survives(content)


SNIPPETS = [
    b"[",
    b"}",
    b"null",
    b"- ",
    b"&a [*a]",
    b"*a",
    b"{}",
    b"[]",
    b"true",
    b".nan",
    b"1e999",
    b"-1",
    b'""',
    b"\n",
]
SNIPPETS += [
    b"!!set",
    b"values",
    b"when",
    b"{values: [[1]]}",
    b"\x00",
    b"\xff",
    b"9" * 5000,
    b"trigger",
    b": ",
    b"a.b.",
]


@examples(40, 300, st.data())
def test_mutated_spaces_give_a_space_or_an_explanation(data: st.DataObject) -> None:
    content = BASE
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 25)))
        content = content[:start] + data.draw(st.sampled_from(SNIPPETS)) + content[end:]
    survives(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@examples(40, 300, st.data())
def test_any_value_anywhere_gives_a_space_or_an_explanation(data: st.DataObject) -> None:
    content = yaml.safe_load(BASE.replace(b"plugins: []", b"plugins: [space_components]"))
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from([key for key in keys if key != "plugins"]))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    survives(yaml.safe_dump(content).encode())
