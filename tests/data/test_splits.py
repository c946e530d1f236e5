from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdray.data.splits import CleanSplit, split_clean, split_test, stratified_order
from bdray.errors import DataError
from bdray.seeds import stream

Split = Literal["held_out", "train_clean"]

label_arrays = st.lists(st.integers(0, 6), min_size=2, max_size=300).map(lambda values: np.array(values, np.int64))
seeds = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return stream(seed, "clean_split")


def clean(labels: np.ndarray, fraction: float, held_out: float, split: Split = "held_out", seed: int = 0) -> CleanSplit:
    return split_clean(labels, fraction=fraction, held_out_fraction=held_out, split=split, generator=generator(seed))


@settings(deadline=None)
@given(label_arrays, seeds)
def test_stratified_order_is_a_permutation(labels: np.ndarray, seed: int) -> None:
    order = stratified_order(labels, generator(seed))
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(labels)))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), seeds)
def test_prefixes_of_equal_classes_differ_by_at_most_one(classes: int, each: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), each))
    order = stratified_order(labels, generator(seed))
    for size in range(len(labels) + 1):
        for part in (order[:size], order[size:]):
            counts = np.bincount(labels[part], minlength=classes)
            assert counts.max() - counts.min() <= 1


@settings(deadline=None)
@given(label_arrays, seeds, st.floats(0, 1))
def test_prefixes_of_unequal_classes_are_in_proportion(labels: np.ndarray, seed: int, fraction: float) -> None:
    order = stratified_order(labels, generator(seed))
    counts = np.bincount(labels, minlength=7)
    taken = np.bincount(labels[order[: round(fraction * len(labels))]], minlength=7)
    present = counts > 0
    # Systematic sampling: there is one time t for which every class of m images has given t * m of them, within one.
    low = np.max((taken[present] - 1) / counts[present])
    high = np.min((taken[present] + 1) / counts[present])
    assert low <= high + 1e-12


def test_every_image_is_as_likely_to_come_first() -> None:
    labels = np.array([0] * 6 + [1] * 2)
    chosen = np.zeros(8)
    for seed in range(4000):
        chosen[stratified_order(labels, generator(seed))[:4]] += 1
    # Expected 2,000 each, standard deviation at most 32.
    assert np.abs(chosen - 2000).max() < 160


@settings(deadline=None)
@given(label_arrays, seeds, st.floats(0, 0.5), st.floats(0.01, 1), st.sampled_from(["held_out", "train_clean"]))
def test_clean_split_sizes_and_disjointness(
    labels: np.ndarray, seed: int, held_out: float, share: float, split: Split
) -> None:
    total = len(labels)
    fraction = held_out * share if split == "held_out" else (1 - held_out) * share
    pool, size = round(held_out * total), round(fraction * total)
    nothing = (fraction > 0 and size == 0) or (held_out > 0 and pool == 0)
    if pool == total or nothing or size > (pool if split == "held_out" else total - pool):
        with pytest.raises(DataError):
            clean(labels, fraction, held_out, split, seed)
        return
    result = clean(labels, fraction, held_out, split, seed)
    train, finetune = set(result.train_indices.tolist()), set(result.clean_indices.tolist())
    assert result.train_indices.dtype == result.clean_indices.dtype == np.int64
    assert len(result.train_indices) == len(train) == total - pool
    assert len(result.clean_indices) == len(finetune) == size
    assert (np.diff(result.train_indices) > 0).all()
    assert (np.diff(result.clean_indices) > 0).all()
    assert train | finetune <= set(range(total))
    assert finetune <= train if split == "train_clean" else not finetune & train


@settings(deadline=None)
@given(seeds, st.floats(0.05, 0.5), st.floats(0.05, 0.5), st.sampled_from(["held_out", "train_clean"]))
def test_a_smaller_clean_set_is_part_of_a_larger_one(seed: int, one: float, other: float, split: Split) -> None:
    labels = np.arange(200) % 10
    small, large = sorted((one, other))
    first, second = (clean(labels, fraction, 0.5, split, seed) for fraction in (small, large))
    assert set(first.clean_indices.tolist()) <= set(second.clean_indices.tolist())
    np.testing.assert_array_equal(first.train_indices, second.train_indices)


def test_held_out_pools_are_nested() -> None:
    labels = np.arange(500) % 10
    small, large = clean(labels, 0.05, 0.05), clean(labels, 0.05, 0.2)
    np.testing.assert_array_equal(small.clean_indices, large.clean_indices)
    assert set(large.train_indices.tolist()) < set(small.train_indices.tolist())


def test_the_clean_set_is_stratified() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    for split in ("held_out", "train_clean"):
        result = clean(labels, 0.05, 0.1, split)
        assert np.bincount(labels[result.clean_indices]).tolist() == [5] * 10
        assert np.bincount(labels[result.train_indices]).tolist() == [90] * 10


def test_seeds_decide() -> None:
    labels = np.arange(300) % 3
    same, again, other = (
        clean(labels, 0.1, 0.1, seed=1),
        clean(labels, 0.1, 0.1, seed=1),
        clean(labels, 0.1, 0.1, seed=2),
    )
    np.testing.assert_array_equal(same.clean_indices, again.clean_indices)
    assert same.clean_indices.tolist() != other.clean_indices.tolist()


def test_fraction_zero_leaves_the_clean_set_empty() -> None:
    result = clean(np.arange(50) % 5, 0.0, 0.1)
    assert len(result.clean_indices) == 0
    assert len(result.train_indices) == 45


@pytest.mark.parametrize(
    ("fraction", "held_out", "split", "message"),
    [
        (
            0.01,
            0.1,
            "held_out",
            "finetune.fraction: 0.01 of .* comes to 0; the smallest finetune.fraction that is not nothing is",
        ),
        (0.5, 1.0, "held_out", "leaves none to train on"),
        (0.5, 0.1, "held_out", "only 2 to choose from"),
        (1.0, 0.1, "train_clean", "only 18 to choose from"),
    ],
)
def test_impossible_splits_are_explained(fraction: float, held_out: float, split: Split, message: str) -> None:
    with pytest.raises(DataError, match=message):
        clean(np.arange(20) % 2, fraction, held_out, split)


@settings(deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.floats(0.01, 0.99), seeds)
def test_test_split_takes_its_share_of_every_class(sizes: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    train, test = split_test(labels, fraction, generator(seed))
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    for label, size in enumerate(sizes):
        taken = int((labels[test] == label).sum())
        assert 1 <= taken <= size - 1
        assert abs(taken - fraction * size) <= 1


@settings(deadline=None)
@given(st.integers(60, 300), seeds, st.sampled_from([0.01, 0.04, 0.08]))
def test_pictures_for_validation_are_the_same_for_every_clean_set_and_in_no_other(
    total: int, seed: int, fraction: float
) -> None:
    labels = np.arange(total, dtype=np.int64) % 3
    found, without = (clean(labels, each, 0.3, seed=seed) for each in (fraction, 0.0))
    assert found.validation_indices.tolist() == without.validation_indices.tolist()
    assert len(found.validation_indices) == round(0.2 * round(0.3 * total))
    used = {*found.train_indices.tolist(), *found.clean_indices.tolist()}
    assert not used & {*found.validation_indices.tolist()}


def test_a_clean_set_that_takes_its_pool_leaves_no_pictures_for_validation() -> None:
    labels = np.arange(100, dtype=np.int64) % 4
    assert len(clean(labels, 0.08, 0.1).validation_indices) == 2
    assert len(clean(labels, 0.09, 0.1).validation_indices) == 0
    assert len(clean(labels, 0.09, 0.1, "train_clean").validation_indices) == 2
