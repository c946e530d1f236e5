"""Numbers of a search space that are rounded to whole things are refused where they come to none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from bdray.condition import COMPONENTS, Condition
from bdray.data import build_dataset
from bdray.data.clean import Clean
from bdray.data.splits import split_clean
from bdray.detectors.base import DETECTORS
from bdray.errors import BdrayError, DataError, PoisonError, SpaceError
from bdray.poisoning.base import STRATEGIES
from bdray.poisoning.poison_plan import require_some
from bdray.recipes import Finetune, Relearn, Train
from bdray.registry import model_in
from bdray.shares import comes_to_nothing, smallest_share
from bdray.space import load_space


@pytest.mark.parametrize("total", [1, 2, 3, 7, 40, 81, 100, 999, 1437, 50_000, 1_281_167])
def test_the_smallest_share_is_not_nothing_and_the_next_smaller_is(total: int) -> None:
    smallest = smallest_share(total)
    below = Fraction(f"{smallest:.12g}") - Fraction(10) ** (math.floor(math.log10(smallest)) - 2)
    assert round(smallest * total) == 1
    assert round(below * total) == 0
    assert float(f"{smallest:.3g}") == smallest


def test_what_is_said() -> None:
    said = "0.001 of 81 training images comes to 0; the smallest poison.rate that is not nothing is 0.00618"
    assert comes_to_nothing(0.001, 81, "training images", "poison.rate") == said
    assert comes_to_nothing(0.0, 81, "training images", "x") is None
    assert comes_to_nothing(0.00618, 81, "training images", "x") is None
    assert str(comes_to_nothing(0.5, 0, "images", "x")).endswith("of 0 images comes to 0; there are none")


@pytest.mark.parametrize("option", ["rate", "cover_rate"])
@pytest.mark.parametrize("strategy", ["all_to_one", "one_to_one", "all_to_all", "clean_label"])
def test_rates(option: str, strategy: str) -> None:
    def check(value: float) -> None:
        poison = STRATEGIES.build({"strategy": strategy, "rate": 0.1, option: value})
        require_some(poison, np.arange(81) % 4, 4)

    said = rf"^{option} 0.001 of 81 .* comes to 0; the smallest poison.{option} that is not nothing is 0.00618"
    with pytest.raises(PoisonError, match=said):
        check(0.001)
    check(0.00618)
    check(0.0)


def test_a_rate_of_what_may_be_poisoned() -> None:
    poison = STRATEGIES.build({"strategy": "one_to_one", "rate": 0.02, "rate_of": "eligible"})
    with pytest.raises(PoisonError, match=r"rate 0.02 of 20 images that 'one_to_one' may poison comes to 0"):
        require_some(poison, np.arange(80) % 4, 4)


@pytest.mark.parametrize(
    ("fraction", "pool", "said"),
    [
        (0.001, 0.1, r"finetune.fraction: 0.001 of 81 .*finetune.fraction that is not nothing is 0.00618"),
        (0.0, 0.001, r"data.clean_pool: 0.001 of 81 .*data.clean_pool that is not nothing is 0.00618"),
    ],
)
def test_clean_sets_and_pools(fraction: float, pool: float, said: str) -> None:
    def split(fraction: float, pool: float) -> int:
        generator = torch.Generator().manual_seed(0)
        made = split_clean(
            np.arange(81) % 3, fraction=fraction, held_out_fraction=pool, split="held_out", generator=generator
        )
        return 81 - len(made.train_indices)

    with pytest.raises(DataError, match=said):
        split(fraction, pool)
    assert split(0.0, 0.00618) == split(0.00618, 0.00618) == 1
    assert split(0.0, 0.0) == 0


@pytest.mark.parametrize("option", ["train_limit", "test_limit"])
def test_limits_that_leave_a_class_without_pictures(option: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"data.{option} of digits: 9 of .* leaves \d+ of 10 classes with 0;"
    ) as raised:
        build_dataset("digits", image_size=8, **{option: 9}).load(tmp_path)
    smallest = int(str(raised.value).rpartition(" ")[2])
    data = build_dataset("digits", image_size=8, **{option: smallest}).load(tmp_path)
    labels = data.train_labels if option == "train_limit" else data.test_labels
    assert (len(labels), len(labels.unique())) == (smallest, 10)
    with pytest.raises(DataError, match="with 0"):
        build_dataset("digits", image_size=8, **{option: smallest - 1}).load(tmp_path)


def test_a_perturbation_of_no_level() -> None:
    content = {"data": "digits", "model": "resnet8", "trigger": "patch"}
    poison = {"strategy": "clean_label", "perturbation": "pgd", "epsilon": 0.002}
    with pytest.raises(BdrayError, match=r"poison.epsilon: 0.002 comes to 0 levels of 255; .* 0.00392"):
        Condition.parse({**content, "poison": poison})
    for fine in ({"epsilon": 0.00392}, {"perturbation": "none"}):
        Condition.parse({**content, "poison": {**poison, **fine}})


SPACE = "fixed: {data: {name: digits, train_limit: 90}, model: resnet8, trigger: patch, poison.rate: 0.1}\n"


@pytest.mark.parametrize(
    ("changed", "path", "count"),
    [
        ("poison.rate=0.001", "poison.rate", 81),
        ("poison.cover_rate=0.001", "poison.cover_rate", 81),
        ("finetune.fraction=0.001", "finetune.fraction", 90),
        ("data.clean_pool=0.0001", "data.clean_pool", 90),
        ("clean.poisoned_share=0.05", "clean.poisoned_share", 4),
        ("data.train_limit=9", "data.train_limit", 9),
        ("parameters.poison.rate={values: [0.2, 0.001, 0.1]}", "poison.rate", 81),
        ("parameters.finetune.fraction={values: [0.001, 0.05]}", "finetune.fraction", 90),
    ],
)
def test_a_plan_says_it_before_anything_runs(tmp_path: Path, changed: str, path: str, count: int) -> None:
    overrides = [changed, *(["finetune.split=train_clean"] if "clean_pool" in changed else [])]
    text = SPACE.replace(", poison.rate: 0.1", "") if changed.startswith("parameters.poison") else SPACE
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(SpaceError) as raised:
        load_space(tmp_path / "space.yaml", overrides)
    assert raised.value.path == path
    assert f"{count} " in raised.value.problem


def test_a_baseline_and_an_unused_clean_set_are_nothing_on_purpose(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    assert load_space(tmp_path / "space.yaml", ["poison.rate=0"])
    assert load_space(tmp_path / "space.yaml", ["poison.rate=0", "clean.poisoned_share=0.05"])
    assert load_space(tmp_path / "space.yaml", ["finetune.epochs=0", "clean.poisoned_share=0.05"])
    assert load_space(tmp_path / "space.yaml", ["finetune.fraction=0.001", "finetune.epochs=0"])


SHARES = {
    "clean.poisoned_share": "refused",
    "data.clean_pool": "refused",
    "data.test_fraction": "one picture of each class at least",
    "detect.expected": "one sample of a class at least",
    "detect.isolated": "two samples at least",
    "finetune.fraction": "refused",
    "poison.rate": "refused",
    "poison.cover_rate": "refused",
    "repair.isolated": "two samples at least",
    "repair.portion": "one picture of a batch at least",
    "repair.stamped": "one picture of a batch at least",
    "trigger.mask_rate": "refused",
}
"""Every option that is a share of things which are counted, and what is done where it comes to none."""
CONTINUOUS = {
    *("alpha", "epsilon", "step_size", "momentum", "lr", "weight", "weight_decay", "sigma", "margin", "temperature"),
    *("opacity", "strength", "delta", "frequency", "beta", "max_drop", "place", "learning_rate"),
    *("label_smoothing", "norm_bias_lr", "logit_scale", "large_lr", "small_lr", "rho", "threshold"),
    *("gamma", "radius", "bound", "step", "fooling", "limit", "reached", "clean_threshold"),
    *("unlearning_lr", "recovering_lr", "small", "false_positives", "width", "factor"),
    *("factors", "wrong", "p_value", "magnitude", "amplitude"),
}
"""Numbers that are never rounded, or whose rounding to no level leaves an image as it was, which a trigger says."""


def numbers(cls: Any, prefix: str) -> Mapping[str, Any]:
    """Every option of a model that is a real number, by path."""
    found: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        nested = model_in(field.annotation)
        if nested is not None:
            found |= numbers(nested, f"{prefix}.{name}")
        elif float in (field.annotation, *get_args(field.annotation)):
            found[f"{prefix}.{name}"] = field
    return found


def test_every_number_of_a_condition_is_a_share_that_is_looked_at_or_is_never_rounded() -> None:
    found = set[str]()
    for section, cls in (("train", Train), ("finetune", Finetune), ("clean", Clean), ("evaluate", Relearn)):
        found |= numbers(cls, section).keys()
    for section, registry in {**COMPONENTS, "detect": DETECTORS}.items():
        for _, cls in registry:
            if cls.__module__.startswith("bdray."):
                found |= numbers(cls, section).keys()
    shares = {path for path in found if path.rpartition(".")[2] not in CONTINUOUS}
    assert shares == set(SHARES)
