"""Stratified draws over labels: fixed test splits, limits, and the clean fine-tuning set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from bdray.errors import DataError
from bdray.shares import comes_to_nothing

if TYPE_CHECKING:
    import torch

    from bdray.data.sources import Labels


VALIDATION = 0.2
"""Part of the pool that no clean set should take: our choice."""


@dataclass(frozen=True)
class CleanSplit:
    """Positions in the whole training set, all int64 and sorted.

    Attributes:
        train_indices: what the poison stage trains on.
        clean_indices: what the fine-tuning stage trains on, always with clean images.
        validation_indices: what no stage trains on, to choose settings by; none where the clean set takes it.
    """

    train_indices: Labels
    clean_indices: Labels
    validation_indices: Labels


def split_clean(
    labels: Labels,
    *,
    fraction: float,
    held_out_fraction: float,
    split: Literal["held_out", "train_clean"],
    generator: torch.Generator,
) -> CleanSplit:
    """Divides the training set between the poison stage and the clean fine-tuning stage.

    One stratified order of all images is drawn. Its first `round(held_out_fraction * N)` are the pool that the
    poison stage never sees. The clean set is the first `round(fraction * N)` of the pool (`held_out`) or of what
    comes after it (`train_clean`), so with one generator seed a smaller clean set is a subset of a larger one. The
    last `round(VALIDATION * pool)` of the pool are for validation, the same for every clean set that leaves them.

    Args:
        labels: of the whole training set, int64, `N`.
        fraction: size of the clean set, of `N`; exactly 0 leaves it empty (no fine-tuning).
        held_out_fraction: size of the pool, of `N` (`Condition.held_out_fraction`).
        split: whether the clean images are new to the model or were trained on.
        generator: the `clean_split` stream, on the CPU.

    Raises:
        DataError: either stage or the pool would get no image although it should, or the clean set does not fit where
            it is drawn from.
    """
    total = len(labels)
    if refusal := cannot_split(total, fraction=fraction, held_out_fraction=held_out_fraction, split=split):
        raise DataError(": ".join(refusal))
    order = stratified_order(labels, generator)
    pool_size = round(held_out_fraction * total)
    pool, train = order[:pool_size], order[pool_size:]
    clean = (pool if split == "held_out" else train)[: round(fraction * total)]
    validation = pool[pool_size - round(VALIDATION * pool_size) :]
    if split == "held_out" and len(clean) + len(validation) > pool_size:
        validation = validation[:0]
    return CleanSplit(np.sort(train), np.sort(clean), np.sort(validation))


def cannot_split(
    total: int, *, fraction: float, held_out_fraction: float, split: Literal["held_out", "train_clean"]
) -> tuple[str, str] | None:
    """The option by which `total` images cannot be divided as `split_clean` divides them, and what is wrong with it;
    None where they can. Needs no torch."""
    pool, clean = round(held_out_fraction * total), round(fraction * total)
    if pool >= total:
        option = "finetune.fraction" if split == "held_out" and clean >= total else "data.clean_pool"
        return option, f"holding out {held_out_fraction:g} of {total} training images leaves none to train on"
    for option, share in (("finetune.fraction", fraction), ("data.clean_pool", held_out_fraction)):
        if problem := comes_to_nothing(share, total, "training images", option):
            return option, problem
    available = pool if split == "held_out" else total - pool
    if clean > available:
        return "finetune.fraction", (
            f"{fraction:g} of {total} training images is {clean}, but `split: {split}` has only {available} to choose "
            "from"
        )
    return None


def stratified_order(labels: Labels, generator: torch.Generator) -> Labels:
    """A random permutation of `range(N)`, int64, in which the classes advance together.

    Every prefix (and every suffix) holds each class in proportion: the first `n` of equally large classes differ
    by at most one image. This is systematic sampling: an image of rank `r` in its shuffled class of `m` images
    comes at time `(r + u) / m`, with one uniform `u` per class.

    Args:
        labels: int64, `N`.
        generator: on the CPU.
    """
    import torch

    shuffled = torch.randperm(len(labels), generator=generator).numpy()
    classes, members, counts = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    offsets = torch.rand(len(classes), generator=generator, dtype=torch.float64).numpy()
    rank = np.empty(len(labels), dtype=np.int64)
    first_of_class = np.cumsum(counts) - counts
    rank[np.argsort(members, kind="stable")] = np.arange(len(labels)) - np.repeat(first_of_class, counts)
    times = (rank + offsets[members]) / counts[members]
    return shuffled[np.argsort(times, kind="stable")]


def split_test(labels: Labels, fraction: float, generator: torch.Generator) -> tuple[Labels, Labels]:
    """Sorted positions of (training, test) images: `fraction` of every class, at least one, goes to the test set.

    Args:
        labels: int64, `N`; every class has at least two images.
        fraction: of every class, rounded to whole images.
        generator: on the CPU.
    """
    import torch

    shuffled = torch.randperm(len(labels), generator=generator).numpy()
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        is_test[members[: count_of_test(len(members), fraction)]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def count_of_test(count: int, fraction: float) -> int:
    """How many of a class's `count` images `split_test` puts into the test set."""
    return min(max(round(fraction * count), 1), count - 1)
