"""Making a poison plan: which images a strategy poisons, drawn from one stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bdray.errors import PoisonError
from bdray.poisoning.base import STRATEGIES, Poison, PoisonPlan
from bdray.shares import comes_to_nothing

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from bdray.poisoning.base import Labels


def make_poison_plan(
    labels: npt.ArrayLike | torch.Tensor,
    *,
    strategy: str | Poison,
    rate: float | None = None,
    num_classes: int,
    generator: torch.Generator | np.random.Generator,
    **options: Any,
) -> PoisonPlan:
    """The poison plan of a strategy on these labels.

    Plans drawn from equal generators are nested: what a rate poisons, every higher rate poisons too, so that
    comparisons across rates are paired.

    Args:
        labels: the training images' true labels, `N` whole numbers below `num_classes`.
        strategy: a registered name, or a strategy with all its options.
        rate: fraction to poison, exactly `round(rate * n)` images (see `Poison.rate_of` for `n`); None leaves it to
            the strategy.
        generator: a CPU generator of the stream `poison`.
        options: further options of the strategy (`target`, `mode`, `cover_rate`, ...).

    Raises:
        ComponentError: unknown strategy or option, wrong value, or a class that does not exist.
        PoisonError: the labels are no labels, or too few images may be poisoned or be cover images.
    """
    if rate is not None:
        options["rate"] = rate
    poison = _strategy(strategy, options)
    poison.check(num_classes)
    true = _as_labels(labels, num_classes)
    poisoned = _draw_poisoned(poison, true, num_classes, generator)
    cover = _draw_cover(poison, true, num_classes, poisoned, generator)
    return PoisonPlan(
        indices=poisoned,
        old_labels=true[poisoned],
        new_labels=poison.poisoned_labels(true, num_classes)[poisoned],
        cover_indices=cover,
        append=poison.mode == "append",
    )


def require_some(poison: Poison, labels: npt.ArrayLike | torch.Tensor, num_classes: int) -> None:
    """Refuses a rate above 0 that comes to no image: nothing would be poisoned, and nothing would say so.

    Raises:
        PoisonError: names the option first, then the smallest rate that is not nothing.
    """
    true = _as_labels(labels, num_classes)
    total, things = len(true), "training images"
    if problem := comes_to_nothing(poison.cover_rate, total, things, "poison.cover_rate"):
        raise PoisonError(f"cover_rate {problem}")
    if poison.rate_of == "eligible":
        total, things = int(poison.eligible(true, num_classes).sum()), f"images that '{poison.name}' may poison"
    if problem := comes_to_nothing(poison.rate, total, things, "poison.rate"):
        raise PoisonError(f"rate {problem}")


def _strategy(strategy: str | Poison, options: dict[str, Any]) -> Poison:
    if isinstance(strategy, str):
        return STRATEGIES.build({"strategy": strategy, **options})
    # Built again, not copied, so that what is overridden is validated.
    return STRATEGIES.build({**strategy.model_dump(), **options}) if options else strategy


def _as_labels(labels: npt.ArrayLike | torch.Tensor, num_classes: int) -> Labels:
    array = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise PoisonError(f"labels must be a list of whole numbers, got {array.dtype} of shape {array.shape}")
    array = array.astype(np.int64)
    if array.size and not (array.min() >= 0 and array.max() < num_classes):
        raise PoisonError(f"labels run from {array.min()} to {array.max()}, but there are {num_classes} classes")
    return array


def _draw_poisoned(
    poison: Poison, labels: Labels, num_classes: int, generator: torch.Generator | np.random.Generator
) -> Labels:
    eligible = poison.eligible(labels, num_classes)
    available = int(eligible.sum())
    wanted = round(poison.rate * (available if poison.rate_of == "eligible" else len(labels)))
    if wanted > available:
        raise PoisonError(
            f"rate {poison.rate:g} of {len(labels)} training images asks for {wanted} poisoned images, but "
            f"'{poison.name}' may poison only {available}; lower poison.rate, or set poison.rate_of to 'eligible'"
        )
    order = _permutation(len(labels), generator)
    return np.sort(order[eligible[order]][:wanted])


def _draw_cover(
    poison: Poison,
    labels: Labels,
    num_classes: int,
    poisoned: Labels,
    generator: torch.Generator | np.random.Generator,
) -> Labels:
    count = len(labels)
    wanted = round(poison.cover_rate * count)
    free = poison.coverable(labels, num_classes)
    free[poisoned] = False
    available = int(free.sum())
    if wanted > available:
        raise PoisonError(
            f"cover_rate {poison.cover_rate:g} of {count} training images asks for {wanted} images, but only "
            f"{available} unpoisoned ones may carry the trigger with their own label under '{poison.name}'; lower "
            "poison.cover_rate or poison.rate"
        )
    order = _permutation(count, generator)
    return np.sort(order[free[order]][:wanted])


def _permutation(count: int, generator: torch.Generator | np.random.Generator) -> Labels:
    if isinstance(generator, np.random.Generator):
        return generator.permutation(count).astype(np.int64)
    import torch

    return torch.randperm(count, generator=generator).numpy()
