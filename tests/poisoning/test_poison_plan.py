"""Poison plans over thousands of random settings, and on disk."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from properties import examples

from bdray.errors import ComponentError, PoisonError
from bdray.poisoning import STRATEGIES, PoisonPlan, make_poison_plan


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def settings_of_a_plan(draw: st.DrawFn) -> dict[str, Any]:
    classes = draw(st.integers(2, 7))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=80))
    strategy = draw(st.sampled_from(["all_to_one", "one_to_one", "all_to_all", "clean_label"]))
    options: dict[str, Any] = {}
    if strategy != "all_to_all":
        options["target"] = draw(st.integers(0, classes - 1))
    if strategy == "one_to_one":
        options["source"] = draw(st.integers(0, classes - 1).filter(lambda label: label != options["target"]))
    return {
        "labels": labels,
        "num_classes": classes,
        "strategy": strategy,
        "rate": draw(st.floats(0, 1)),
        "rate_of": draw(st.sampled_from(["train", "eligible"])),
        "mode": draw(st.sampled_from(["replace", "append"])),
        "cover_rate": draw(st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0])),
        **options,
    }


def _may_be_poisoned(asked: dict[str, Any], label: int) -> bool:
    """Written from the definitions, without the strategies."""
    return {
        "all_to_one": label != asked.get("target"),
        "one_to_one": label == asked.get("source"),
        "all_to_all": True,
        "clean_label": label == asked.get("target"),
    }[asked["strategy"]]


def _poisoned_label(asked: dict[str, Any], label: int) -> int:
    if asked["strategy"] == "all_to_all":
        return label + 1 if label + 1 < asked["num_classes"] else 0
    return int(asked["target"])


def _may_cover(asked: dict[str, Any], label: int) -> bool:
    """Written from the definitions, without the strategies."""
    if asked["strategy"] == "one_to_one":
        return label not in (asked["source"], asked["target"])
    return label != asked.get("target")


@examples(300, 2000, asked=settings_of_a_plan(), seed=st.integers(0, 2**32))
def test_every_plan_keeps_its_promises(asked: dict[str, Any], seed: int) -> None:
    labels = asked["labels"]
    eligible = [i for i, label in enumerate(labels) if _may_be_poisoned(asked, label)]
    wanted = round(asked["rate"] * (len(eligible) if asked["rate_of"] == "eligible" else len(labels)))
    cover = round(asked["cover_rate"] * len(labels))
    coverable = sum(_may_cover(asked, label) for label in labels)
    # What is poisoned is no longer free, where it was free at all.
    taken = wanted if asked["strategy"] in ("all_to_one", "all_to_all") else 0
    possible = wanted <= len(eligible) and cover <= coverable - taken
    if not possible:
        with pytest.raises(PoisonError, match="asks for"):
            make_poison_plan(**asked, generator=generator(seed))
        return
    plan = make_poison_plan(**asked, generator=generator(seed))
    poisoned, covered = plan.indices.tolist(), plan.cover_indices.tolist()
    assert len(poisoned) == wanted
    assert len(covered) == cover
    assert poisoned == sorted(set(poisoned))
    assert covered == sorted(set(covered))
    assert not set(poisoned) & set(covered)
    assert set(poisoned) <= set(eligible)
    assert all(_may_cover(asked, labels[i]) for i in covered)
    assert plan.old_labels.tolist() == [labels[i] for i in poisoned]
    assert plan.new_labels.tolist() == [_poisoned_label(asked, labels[i]) for i in poisoned]
    if asked["strategy"] == "clean_label":
        assert plan.new_labels.tolist() == plan.old_labels.tolist()
    else:
        assert (plan.new_labels != plan.old_labels).all()
    assert plan.append == (asked["mode"] == "append")
    assert all(array.dtype == np.int64 for array in (plan.indices, plan.old_labels, plan.new_labels))


@examples(
    100, 1000, asked=settings_of_a_plan(), rates=st.tuples(st.floats(0, 1), st.floats(0, 1)), seed=st.integers(0, 1000)
)
def test_lower_rates_poison_a_subset(asked: dict[str, Any], rates: tuple[float, float], seed: int) -> None:
    plans = [
        make_poison_plan(**{**asked, "rate": rate, "rate_of": "eligible", "cover_rate": 0.0}, generator=generator(seed))
        for rate in sorted(rates)
    ]
    assert set(plans[0].indices.tolist()) <= set(plans[1].indices.tolist())


def test_every_eligible_image_has_the_same_chance() -> None:
    labels = np.arange(20) % 4
    counts = np.zeros(20)
    for seed in range(2000):
        plan = make_poison_plan(labels, strategy="all_to_one", rate=0.25, num_classes=4, generator=generator(seed))
        counts[plan.indices] += 1
    # 15 eligible images, 5 poisoned each time: 667 expected, standard deviation 21.
    assert (counts[labels == 0] == 0).all()
    assert np.abs(counts[labels != 0] - 2000 / 3).max() < 5 * 21


@pytest.mark.parametrize(
    "labels",
    [
        list(np.arange(100) % 10),
        np.arange(100, dtype=np.uint8) % 10,
        torch.arange(100) % 10,
        (torch.arange(100) % 10).to(torch.int32),
    ],
    ids=["list", "uint8", "tensor", "int32 tensor"],
)
def test_takes_every_kind_of_labels(labels: Any) -> None:
    plan = make_poison_plan(labels, strategy="all_to_all", rate=0.5, num_classes=10, generator=generator())
    expected = make_poison_plan(
        np.arange(100) % 10, strategy="all_to_all", rate=0.5, num_classes=10, generator=generator()
    )
    assert plan.to_bytes() == expected.to_bytes()
    assert plan.new_labels.max() == 9


def test_takes_a_strategy_with_its_options_and_lets_them_be_overridden() -> None:
    poison = STRATEGIES.build({"strategy": "one_to_one", "rate": 0.05, "source": 4, "target": 7})
    labels = np.arange(100) % 10
    own = make_poison_plan(labels, strategy=poison, num_classes=10, generator=generator())
    assert (len(own.indices), set(own.old_labels), set(own.new_labels)) == (5, {4}, {7})
    more = make_poison_plan(labels, strategy=poison, rate=0.1, num_classes=10, generator=generator(), target=8)
    assert (len(more.indices), set(more.old_labels), set(more.new_labels)) == (10, {4}, {8})


def test_takes_a_numpy_generator() -> None:
    plans = [
        make_poison_plan(
            [0, 1] * 50, strategy="all_to_one", rate=0.2, num_classes=2, generator=np.random.default_rng(s)
        )
        for s in (1, 1, 2)
    ]
    assert plans[0].to_bytes() == plans[1].to_bytes() != plans[2].to_bytes()
    assert len(plans[0].indices) == 20


def test_rounds_as_python_does() -> None:
    count = lambda rate: len(  # noqa: E731
        make_poison_plan([0, 1] * 25, strategy="all_to_all", rate=rate, num_classes=2, generator=generator()).indices
    )
    assert [count(0.01), count(0.03), count(0.05), count(0.07)] == [round(0.5), round(1.5), round(2.5), round(3.5)]


def test_rate_zero_poisons_nothing() -> None:
    plan = make_poison_plan([0, 1, 2], strategy="all_to_one", rate=0.0, num_classes=3, generator=generator())
    assert [len(a) for a in (plan.indices, plan.old_labels, plan.new_labels, plan.cover_indices)] == [0, 0, 0, 0]


def test_too_few_images_are_counted() -> None:
    with pytest.raises(PoisonError, match=r"asks for 20 poisoned images, but 'one_to_one' may poison only 10;"):
        make_poison_plan(np.arange(100) % 10, strategy="one_to_one", rate=0.2, num_classes=10, generator=generator())
    with pytest.raises(PoisonError, match=r"cover_rate 0.9 of 100 .* asks for 90 images, but only 70 unpoisoned ones"):
        make_poison_plan(
            np.arange(100) % 10, strategy="all_to_one", rate=0.2, cover_rate=0.9, num_classes=10, generator=generator()
        )


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([0, 1, 10], "labels run from 0 to 10, but there are 10 classes"),
        ([-1, 1], "labels run from -1 to 1"),
        ([0.5, 1.0], "whole numbers, got float64"),
        ([[0, 1]], r"of shape \(1, 2\)"),
    ],
)
def test_refuses_what_are_no_labels(labels: Any, problem: str) -> None:
    with pytest.raises(PoisonError, match=problem):
        make_poison_plan(labels, strategy="all_to_one", rate=0.1, num_classes=10, generator=generator())


def test_refuses_a_class_that_does_not_exist() -> None:
    with pytest.raises(ComponentError, match="target: class 10 does not exist"):
        make_poison_plan([0, 1], strategy="all_to_one", rate=0.5, num_classes=10, target=10, generator=generator())


@pytest.fixture
def plan() -> PoisonPlan:
    labels = np.arange(200) % 10
    options: dict[str, Any] = {"rate": 0.1, "cover_rate": 0.05, "mode": "append"}
    return make_poison_plan(labels, strategy="all_to_one", num_classes=10, generator=generator(), **options)


def test_numpy_reads_what_was_kept(plan: PoisonPlan) -> None:
    with np.load(io.BytesIO(plan.to_bytes()), allow_pickle=False) as read:
        for name in ("indices", "old_labels", "new_labels", "cover_indices"):
            np.testing.assert_array_equal(read[name], getattr(plan, name))
            assert read[name].dtype == np.int64
        assert bool(read["append"]) is True


def test_the_same_plan_has_the_same_bytes(plan: PoisonPlan) -> None:
    assert plan.to_bytes() == plan.relocated(np.arange(200)).to_bytes()


def test_relocated_names_the_same_images_in_a_larger_set() -> None:
    whole = np.arange(300) % 10
    positions = np.random.default_rng(0).permutation(300)[:200]
    plan = make_poison_plan(
        whole[positions], strategy="all_to_one", rate=0.1, cover_rate=0.1, num_classes=10, generator=generator()
    )
    moved = plan.relocated(positions)
    np.testing.assert_array_equal(moved.old_labels, whole[moved.indices])
    assert sorted(moved.indices) == moved.indices.tolist()
    assert set(moved.indices) == set(positions[plan.indices])
    assert moved.cover_indices.tolist() == sorted(positions[plan.cover_indices])
