"""Poison plans that no draw could fill are refused when they are planned, and no others."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdray.condition import Condition
from bdray.data.base import build_dataset
from bdray.data.splits import split_clean, stratified_order
from bdray.errors import PoisonError, SpaceError
from bdray.poisoning.base import Poison
from bdray.poisoning.poison_plan import make_poison_plan
from bdray.space import SearchSpace, feasibility, load_space
from bdray.space.dry_run import make_plan
from bdray.space.feasibility import bounds_of_kept, infeasible, without_effect
from bdray.trial.repair_inputs import clean_items
from bdray.trial.setup import Experiment

Load = Callable[[str], SearchSpace]

SPACE = """\
seeds: [0, 1]
fixed:
  data: {name: digits}
  model: resnet8
parameters:
  trigger.name: {values: [patch, blend]}
  poison.rate:
    values: [0.1,
             0.95]
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> SearchSpace:
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return load_space(path)

    return load


def test_too_high_a_rate_is_refused_at_its_line(load: Load) -> None:
    with pytest.raises(SpaceError) as caught:
        load(SPACE)
    assert (caught.value.line, caught.value.path) == (9, "poison.rate")
    assert caught.value.problem.startswith("rate 0.95 of 1294 training images asks for 1229 poisoned images")
    assert len(load(SPACE.replace("0.95", "0.85")).conditions()) == 8
    assert load(SPACE + "  poison.rate_of: {value: eligible}\n")


@pytest.mark.parametrize(
    ("old", "new", "line", "path"),
    [
        ("0.95]", "0.2]\n  poison.cover_rate: {value: 0.85}", 10, "poison.cover_rate"),
        ("0.95]", "0.2]\n  poison.strategy: {values: [all_to_one, clean_label]}", 9, "poison.rate"),
        ("0.95]", "0.2]\ninclude: [{trigger: patch, poison: {strategy: one_to_one, rate: 0.3}}]", 10, "poison.rate"),
        ("0.95]", "0.099]\n  poison.strategy: {values: [clean_label]}\n  data.train_limit: {value: 30}", 9, ""),
    ],
)
def test_what_asks_for_too_much_is_named(load: Load, old: str, new: str, *, line: int, path: str) -> None:
    text = SPACE.replace(old, new)
    if not path:
        assert load(text), "3 images of 27 may be of one class: only the draw knows"
        return
    with pytest.raises(SpaceError) as caught:
        load(text)
    assert (caught.value.line, caught.value.path) == (line, path)


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=6),
    st.floats(0.01, 1.0),
    st.integers(0, 1000),
)
def test_bounds_hold_for_every_draw(sizes: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = stratified_order(labels, torch.Generator().manual_seed(seed))
    kept = max(1, round(fraction * len(labels)))
    counts = np.asarray(sizes)
    low, high, total = bounds_of_kept((counts, counts, len(labels)), kept)
    assert total == kept
    for part in (order[:kept], order[-kept:]):
        found = np.bincount(labels[part], minlength=len(sizes))
        assert (low <= found).all()
        assert (found <= high).all()


CONDITION: dict[str, Any] = {"data": "digits", "model": "resnet8", "trigger": "patch"}


@pytest.mark.parametrize("strategy", ["all_to_one", "one_to_one", "all_to_all", "clean_label"])
@pytest.mark.parametrize("limit", [None, 100])
def test_what_is_refused_fails_and_what_fails_by_more_than_a_draw_is_refused(strategy: str, limit: int | None) -> None:
    data = build_dataset("digits", train_limit=limit)
    labels = data.load().train_labels.numpy()
    for rate in (0.02, 0.05, 0.09, 0.1, 0.11, 0.15, 0.5, 0.88, 0.9, 0.92, 1.0):
        content = {**CONDITION, "data": data.model_dump(), "poison": {"strategy": strategy, "rate": rate}}
        condition = Condition.parse(content)
        split = split_clean(
            labels,
            fraction=condition.finetune.fraction,
            held_out_fraction=condition.held_out_fraction,
            split="held_out",
            generator=torch.Generator().manual_seed(0),
        )
        rng = np.random.default_rng(0)
        try:
            make_poison_plan(labels[split.train_indices], strategy=condition.poison, num_classes=10, generator=rng)
            fails = False
        except PoisonError:
            fails = True
        refused = infeasible([condition]) is not None
        assert fails or not refused
        if limit is None and rate not in (0.09, 0.1, 0.11, 0.9):
            assert refused == fails


@pytest.mark.parametrize("split", ["held_out", "train_clean"])
@pytest.mark.parametrize("strategy", ["all_to_one", "one_to_one", "clean_label"])
def test_a_clean_set_in_which_the_attack_is_meant_for_too_few_is_refused(
    strategy: str, split: str, tmp_path: Path
) -> None:
    """Found: it failed in the trial."""
    for share in (0.05, 0.1, 0.13, 0.5, 0.89, 0.95, 1.0):
        content = {
            **CONDITION,
            "poison": {"strategy": strategy, "rate": 0.05},
            "clean": {"poisoned_share": share},
            "finetune": {"split": split},
        }
        condition = Condition.parse(content)
        one = Experiment.prepare(condition, torch.device("cpu"), tmp_path)
        try:
            clean_items(one)
            fails = False
        except PoisonError:
            fails = True
        found = infeasible([condition])
        assert fails or found is None
        assert found is None or found[1].path == "clean.poisoned_share"
        if share in (0.05, 0.5, 1.0):
            assert (found is not None) == fails


@pytest.mark.parametrize("strategy", ["all_to_one", "one_to_one", "all_to_all", "clean_label"])
@pytest.mark.parametrize("limit", [None, 100])
def test_too_few_cover_images_are_refused_and_no_draw_that_has_enough_is(strategy: str, limit: int | None) -> None:
    data = build_dataset("digits", train_limit=limit)
    labels = data.load().train_labels.numpy()
    for cover in (0.1, 0.5, 0.7, 0.75, 0.77, 0.78, 0.79, 0.8, 0.82, 0.84, 0.86, 0.88, 0.89, 0.9, 0.91, 0.95, 1.0):
        poison = {"strategy": strategy, "rate": 0.03, "cover_rate": cover}
        condition = Condition.parse({**CONDITION, "data": data.model_dump(), "poison": poison})
        fails = [_fails(condition, labels, seed) for seed in range(20)]
        refused = infeasible([condition])
        assert refused is None or all(fails), f"{cover} is refused, but seed {fails.index(False)} has enough"
        if refused is not None:
            assert refused[1].path == "poison.cover_rate"
        if limit is None and abs(sum(fails) - 10) == 10 and cover not in (0.77, 0.78, 0.79, 0.8, 0.89, 0.9, 0.91):
            assert (refused is not None) == all(fails)


def _fails(condition: Condition, labels: np.ndarray, seed: int) -> bool:
    split = split_clean(
        labels,
        fraction=condition.finetune.fraction,
        held_out_fraction=condition.held_out_fraction,
        split="held_out",
        generator=torch.Generator().manual_seed(seed),
    )
    try:
        make_poison_plan(
            labels[split.train_indices],
            strategy=condition.poison,
            num_classes=10,
            generator=np.random.default_rng(seed),
        )
    except PoisonError:
        return True
    return False


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "svhn", "tiny_imagenet", "flowers102"])
def test_published_sizes_are_those_that_load(name: str, request: pytest.FixtureRequest) -> None:
    sizes = build_dataset(name).train_sizes()
    assert sizes is not None
    published = {"digits": 1438, "flowers102": 2_040, "svhn": 73_257, "tiny_imagenet": 100_000}
    assert sum(sizes) == published.get(name, 50_000)
    if name == "digits":
        assert tuple(torch.bincount(build_dataset(name).load().train_labels).tolist()) == sizes


def test_sizes_of_folders_are_listed(tmp_path: Path) -> None:
    from PIL import Image

    for name, count in (("cat", 7), ("dog", 3)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (index * 20, 0, 0)).save(tmp_path / "set" / name / f"{index}.png")
    data = build_dataset("image_folder", root=str(tmp_path / "set"), image_size=8)
    assert data.train_sizes() == tuple(torch.bincount(data.load(tmp_path / "cache").train_labels).tolist()) == (6, 2)
    assert build_dataset("flowers", root=str(tmp_path / "nowhere")).train_sizes() is None
    (tmp_path / "empty").mkdir()
    assert build_dataset("flowers102", root=str(tmp_path / "empty")).train_sizes() is None, "nothing is downloaded"


def test_ten_thousand_conditions_take_few_plans(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [round(0.001 * index, 4) for index in range(1, 501)]
    text = SPACE.replace("digits", "cifar10").replace("[0.1,\n             0.95]", str(rates))
    conditions = load(text.replace("[0, 1]", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]")).conditions()
    assert len(conditions) == 10_000
    asked: list[float] = []

    def plan(labels: Any, *, strategy: Poison, **rest: Any) -> Any:
        asked.append(strategy.rate)
        return make_poison_plan(labels, strategy=strategy, **rest)

    monkeypatch.setattr(feasibility, "make_poison_plan", plan)
    assert infeasible(conditions) is None
    assert {0.001, 0.5} <= set(asked), "the lowest and the highest rate"
    assert len(asked) <= 6


def test_looking_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE.replace("0.95", "0.2"))
    code = "import sys; from bdray.space import load_space; load_space('space.yaml'); "
    code += "print(sorted({'torch', 'sklearn', 'ray', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_a_regularizer_without_weight_is_said_to_be_the_control(load: Load) -> None:
    importlib.import_module("broken_components")
    text = SPACE.replace("             0.95]", "             0.05]") + (
        "  regularizer.name: {values: [none, test_idle, logit_squeezing, contrastive]}\n"
        "  regularizer.weight: {values: [0, 0.1], when: {regularizer.name: contrastive}}\n"
    )
    space = load(text)
    said = without_effect(space.conditions())
    assert [line.split(";")[0] for line in said] == [
        "the regularizer test_idle has weight 0 in 8 conditions, which then train what 'none' trains",
        "the regularizer contrastive has weight 0 in 8 conditions, which then train what 'none' trains",
    ]
    assert set(said) <= set(make_plan(space).notes)


def test_lengths_that_scale_to_as_many_pixels_are_said(load: Load) -> None:
    text = (
        "name: small\nfixed:\n  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}\n"
        "  model: {name: resnet8}\n  poison.rate: 0.1\nparameters:\n"
        "  trigger.name: {values: [patch, line]}\n"
        "  trigger.size: {values: [3, 5, 8], when: {trigger.name: patch}}\n"
    )
    space = load(text)
    (said,) = without_effect(space.conditions())
    assert said == "trigger.size 3, 5 of patch all come to 2 pixels in images of 16 x 16"
    assert said in make_plan(space).notes
    (said,) = without_effect(load(text.replace("[3, 5, 8]", "[1, 2, 8]")).conditions())
    assert said == "trigger.size 1, 2 of patch all come to 1 pixel in images of 16 x 16"
