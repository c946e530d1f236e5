"""What can only fail, known before any picture is read: too large a trigger, too few images to poison or to train on,
a share that is rounded to nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bdray.condition import Condition
from bdray.data.base import DataSet
from bdray.data.splits import cannot_split
from bdray.errors import ComponentError, ConditionError, DataError, PoisonError
from bdray.poisoning.base import Poison
from bdray.poisoning.poison_plan import make_poison_plan, require_some
from bdray.repairs.base import Training
from bdray.shares import comes_to_nothing
from bdray.triggers.placement import scaled

Bounds = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]
"""At least and at most how many images of each class there are, and how many in all."""


def infeasible(conditions: Sequence[Condition]) -> tuple[Condition, ConditionError] | None:
    """A condition that can only fail, and why: its trigger is larger than its images, or on no draw of its training set
    can it poison as many images as it should, there or in its clean set, or find as many cover images, or its training
    set cannot be divided as it should be, or a stage is left one image that its network cannot be trained on.

    All but the first for data sets that know their class sizes without decoding (`DataSet.train_sizes`).
    """
    for condition in {(id(c.trigger), id(c.poison), c.data.image_size): c for c in conditions}.values():
        for section, trigger in (("trigger", condition.trigger), ("poison.test_trigger", condition.test_trigger)):
            try:
                if trigger:
                    trigger.check(condition.data.image_size)
            except ComponentError as error:
                return condition, error.below(section)
    sizes: dict[int, Bounds | None] = {}
    for condition in conditions:
        if id(condition.data) not in sizes:
            sizes[id(condition.data)] = _bounds(condition.data)
    known = [(condition, bounds) for condition in conditions if (bounds := sizes[id(condition.data)]) is not None]
    return _empty(known) or _unfillable(known) or _overfull(known)


def _empty(conditions: Sequence[tuple[Condition, Bounds]]) -> tuple[Condition, ConditionError] | None:
    """One whose limit is below the number of classes, or whose clean set, its poisoned share, pool or stage has too few
    images."""
    kinds = {
        (id(c.data), id(c.model), id(c.repair), id(c.finetune), id(c.clean), c.is_baseline): (c, bounds)
        for c, bounds in conditions
    }
    for condition, (low, _, total) in kinds.values():
        if total < len(low):
            fewer = f"{total} images are fewer than {len(low)} classes; the smallest is {len(low)} or more"
            return condition, ConditionError("data.train_limit", fewer)
        held_out, split = condition.held_out_fraction, condition.finetune.split
        fraction = condition.clean_fraction if condition.clean.root is None else 0.0
        if refusal := (
            cannot_split(total, fraction=fraction, held_out_fraction=held_out, split=split)
            or _alone(condition, total)
            or _unlike(condition, total)
        ):
            return condition, ConditionError(*refusal)
        share, clean = condition.clean.poisoned_share, round(condition.clean_fraction * total)
        if clean and not condition.is_baseline:
            option = "clean.poisoned_share"
            if problem := comes_to_nothing(share, clean, "clean images", option):
                return condition, ConditionError(option, problem)
    return None


def _unlike(condition: Condition, total: int) -> tuple[str, str] | None:
    """The option by which the clean set cannot be drawn from another folder, and why; None where it can, or where that
    is not known here."""
    clean, names = condition.clean, condition.data.class_names()
    # What detectors get, where the repair uses none.
    fraction = condition.asked_fraction
    if not fraction or not clean.is_here:
        return None
    count = round(fraction * total)
    if problem := comes_to_nothing(fraction, total, "training images", "finetune.fraction"):
        return "finetune.fraction", problem
    if names is None:
        return None
    try:
        (classes,) = clean.check_classes(names).splits.values()
    except DataError as error:
        return _parted(str(error))
    problem = clean.too_few(count, sum(map(len, classes.values())))
    return None if problem is None else _parted(problem)


def _parted(said: str) -> tuple[str, str]:
    """A message that begins with its option, as both."""
    option, _, problem = said.partition(": ")
    return option, problem


def _alone(condition: Condition, total: int) -> tuple[str, str] | None:
    """The option that leaves a stage one image where the network needs two, and why.

    Args:
        total: training images.
    """
    side, network = condition.data.image_size, condition.model
    if network.smallest_map(side) != 1:
        return None
    kept, clean = total - round(condition.held_out_fraction * total), round(condition.clean_fraction * total)
    found = [("poison", kept, "data.train_limit", "train on more images")]
    found += [
        (step.name, clean, "finetune.fraction", f"give it {2 / total:.3g} or more")
        if step.data == "clean"
        else (step.name, kept, "data.train_limit", "train on more images")
        for step in condition.repair_stages
        if isinstance(step, Training) and step.recipe.epochs
    ]
    for stage, count, option, advice in found:
        if count == 1:
            return option, (
                f"leaves the {stage} stage one image of {total}, and {network.name} cannot be trained on one: the last "
                f"map of {side} x {side} pixels is one pixel, and batch statistics need two; {advice}, or larger images"
            )
    return None


def _unfillable(conditions: Sequence[tuple[Condition, Bounds]]) -> tuple[Condition, ConditionError] | None:
    # Of conditions that differ in nothing but the rate, the highest asks for most; the lowest may come to nothing.
    alike: dict[tuple[Any, ...], list[tuple[Condition, Bounds]]] = {}
    keys: dict[int, Any] = {}
    for condition, bounds in conditions:
        poison = condition.poison
        if id(poison) not in keys:
            options = [getattr(poison, option) for option in type(poison).model_fields if option != "rate"]
            keys[id(poison)] = poison.name, repr(options)
        key = id(condition.data), condition.held_out_fraction, keys[id(poison)]
        alike.setdefault(key, []).append((condition, bounds))
    for members in alike.values():
        members.sort(key=lambda member: member[0].poison.rate)
        lowest = next((member for member in members if member[0].poison.rate > 0), members[0])
        for condition, bounds in (members[-1], *([lowest] if lowest is not members[-1] else [])):
            if error := _error(condition, bounds):
                return condition, error
    return None


def _overfull(conditions: Sequence[tuple[Condition, Bounds]]) -> tuple[Condition, ConditionError] | None:
    """One of whose clean set more is to be poisoned than the attack is meant for, however it is drawn."""
    kinds = {
        (id(c.data), id(c.poison), id(c.clean), id(c.finetune), id(c.repair)): (c, bounds)
        for c, bounds in conditions
        if c.clean.poisoned_share and c.clean.root is None and not c.is_baseline
    }
    for condition, bounds in kinds.values():
        clean = round(condition.clean_fraction * bounds[2])
        count, most = round(condition.clean.poisoned_share * clean), _most_attacked(condition, bounds, clean)
        if count > most:
            problem = f"{count} of {clean} clean images are to be poisoned, but the attack is meant for {most} at most"
            return condition, ConditionError("clean.poisoned_share", problem)
    return None


def _most_attacked(condition: Condition, bounds: Bounds, clean: int) -> int:
    """How many of `clean` images can be of classes that the attack is meant for."""
    begin = 0 if condition.finetune.split == "held_out" else round(condition.held_out_fraction * bounds[2])
    before, until = bounds_of_kept(bounds, begin), bounds_of_kept(bounds, begin + clean)
    least, most = (until[0] - before[1]).clip(min=0), until[1] - before[0]
    attacked = condition.poison.attacked(np.arange(len(most), dtype=np.int64), len(most))
    return min(clean - int(least[~attacked].sum()), int(most[attacked].sum()))


def _error(condition: Condition, known: Bounds) -> ConditionError | None:
    total = known[2]
    bounds = bounds_of_kept(known, total - round(condition.held_out_fraction * total))
    poison, classes = condition.poison, np.arange(len(bounds[0]), dtype=np.int64)
    try:
        eligible, coverable = (may(classes, len(classes)) for may in (poison.eligible, poison.coverable))
        error = _refusal(poison, bounds, eligible)
        if error and error.path == "poison.cover_rate" and not np.array_equal(eligible, coverable):
            # Where most may be poisoned, fewest may be cover images: these have their own easiest labels.
            error = _refusal(poison.model_copy(update={"rate": 0.0}), bounds, coverable)
    except ComponentError as error:
        return error.below("poison")
    return error


def _refusal(poison: Poison, bounds: Bounds, wanted: npt.NDArray[np.bool_]) -> ConditionError | None:
    """Why `poison` fails even on the labels that hold most of the `wanted` classes (bool, `K`)."""
    labels, rng = _easiest(wanted, bounds), np.random.default_rng(0)
    try:
        make_poison_plan(labels, strategy=poison, num_classes=len(wanted), generator=rng)
        require_some(poison, labels, len(wanted))
    except PoisonError as error:
        # It begins with the option that asks for too much.
        return ConditionError(f"poison.{str(error).partition(' ')[0]}", str(error))
    return None


def _bounds(data: DataSet) -> Bounds | None:
    sizes = data.train_sizes()
    if sizes is None:
        return None
    counts = np.asarray(sizes, dtype=np.int64)
    total = int(counts.sum())
    return bounds_of_kept((counts, counts, total), min(data.train_limit or total, total))


def bounds_of_kept(bounds: Bounds, kept: int) -> Bounds:
    """The bounds for the first `kept` images of a stratified order (`bdray.data.splits.stratified_order`), or the last.

    A class of `m` among `N` images in `K` classes has there less than `1 + m K / N` more or fewer than its share: its
    own draw is off by less than one, and so is every other class's, which moves the end of the prefix.
    """
    low, high, total = bounds
    if kept == total:
        return bounds
    slack = 1 + high * len(high) / total
    least = np.clip(np.floor(low * kept / total - slack), 0, low).astype(np.int64)
    most = np.clip(np.ceil(high * kept / total + slack), 0, high).astype(np.int64)
    return least, most, kept


def _easiest(wanted: npt.NDArray[np.bool_], bounds: Bounds) -> npt.NDArray[np.int64]:
    """Labels within the bounds, most of them of `wanted` classes (bool, `K`). int64, `N`."""
    least, most, total = bounds
    classes = np.arange(len(least), dtype=np.int64)
    counts, left = least.copy(), total - int(least.sum())
    for label in np.argsort(~wanted, kind="stable"):
        more = min(left, int(most[label] - least[label]))
        counts[label] += more
        left -= more
    return np.repeat(classes, counts)


def without_effect(conditions: Sequence[Condition]) -> list[str]:
    """Sentences on settings that make no difference: regularizers without weight, lengths that scale to as many
    pixels."""
    return [*_idle_regularizers(conditions), *_equal_lengths(conditions)]


def _equal_lengths(conditions: Sequence[Condition]) -> Iterator[str]:
    found: dict[tuple[str, str, int], dict[int, set[int]]] = {}
    stamped = {(id(c.trigger), c.data.image_size): c.trigger for c in conditions if c.trigger}
    for (_, side), trigger in stamped.items():
        for option in trigger.LENGTHS:
            length = getattr(trigger, option, 0)
            values = found.setdefault((trigger.name, option, side), {}).setdefault(scaled(length, side, side), set())
            values.add(length)
    for (name, option, side), lengths in found.items():
        for pixels, values in lengths.items():
            if len(values) > 1:
                said = ", ".join(map(str, sorted(values)))
                amount = "1 pixel" if pixels == 1 else f"{pixels} pixels"
                yield f"trigger.{option} {said} of {name} all come to {amount} in images of {side} x {side}"


def _idle_regularizers(conditions: Sequence[Condition]) -> list[str]:
    """A sentence for each regularizer that some conditions give no weight: they are copies of the control."""
    idle = Counter(c.regularizer.name for c in conditions if c.regularizer.is_idle)
    return [
        f"the regularizer {name} has weight 0 in {count} conditions, which then train what 'none' trains;"
        " give them a regularizer.weight"
        for name, count in idle.items()
    ]
