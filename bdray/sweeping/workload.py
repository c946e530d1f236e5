"""What a condition costs before anything was measured: how many pictures go through which stages of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bdray.condition import Condition, digest
from bdray.recipes import Optimization
from bdray.repairs.base import Training
from bdray.trial.measurements import speed_key, stage_images, training_set_size
from bdray.trial.surrogate import PlannedSurrogate, surrogate_of

Kind = tuple[str, ...]
"""What decides the time for a picture, what decides most first: conditions are alike as far as their kinds agree."""

POISON, SURROGATE = "poison", "surrogate"

FORWARD = 1 / 3
"""A picture that is only looked at, beside one that is trained on."""

_REFERENCE_PIXELS = 32 * 32
_TEST_PART = 0.2
"""Test images beside training images, of a data set that was not loaded yet."""


@dataclass(frozen=True)
class StageWork:
    """One stage of a condition.

    Attributes:
        step: what is done in it; stages of one kind of training that do the same take as long for a picture.
        epochs: that are reported, 1 for an operation.
        units: training images over all epochs, evaluations included; times the area of a picture beside 32 x 32.
        shared: the model is kept: other conditions that need the stage do not compute it.
        trains: it is no operation, and so is heard of after each epoch.
    """

    name: str
    fingerprint: str
    step: str
    epochs: int
    units: float
    shared: bool
    trains: bool


@dataclass(frozen=True)
class Work:
    """What is to be computed for a condition."""

    condition_id: str
    kind: Kind
    stages: tuple[StageWork, ...]

    @property
    def units(self) -> float:
        """Of all stages."""
        return sum(stage.units for stage in self.stages)


def work_of(condition: Condition, max_batches: int | None = None) -> Work:
    """The work of a condition, its surrogate's first. `max_batches`: of an epoch, in a rehearsal."""
    return Work(condition.condition_id, kind_of(condition), tuple(_stages(condition, max_batches)))


def kind_of(condition: Condition) -> Kind:
    """Model, picture size, regularizer and recipe; then what only matters beside the training."""
    return (
        digest({"model": condition.model.identity()}),
        str(condition.data.image_size),
        speed_key(condition),
        digest({"data": condition.data.name, "strategy": condition.poison.name, "role": condition.role}),
    )


def training_label(condition: Condition) -> str:
    """A kind of training in words: `nasnet weights=imagenet, 224 pixels, manifold_mixup, 32 pictures a step`."""
    size, step = f"{condition.data.image_size} pixels", f"{condition.train.batch_size} pictures a step"
    regularizer = () if condition.regularizer.name == "none" else (condition.regularizer.label,)
    return ", ".join((condition.model.label, size, *regularizer, step))


def training_of(kind: Kind) -> Kind:
    """What decides the time for a training image."""
    return kind[:3]


def _stages(condition: Condition, max_batches: int | None) -> Iterator[StageWork]:
    if (surrogate := surrogate_of(condition)) is not None:
        yield _training_of(surrogate, max_batches)
    trained = dict(stage_images(condition, max_batches))
    recipes: list[Optimization | None] = [condition.train]
    epochs = [condition.train.epochs]
    for step in condition.repair_stages:
        recipes.append(step.recipe if isinstance(step, Training) else None)
        epochs.append(step.recipe.epochs if isinstance(step, Training) else 1)
    for planned, recipe, count in zip(condition.stages, recipes, epochs, strict=True):
        tested = FORWARD * _tested(condition, recipe, count)
        units = _area(condition) * (trained.get(planned.fingerprint, 0.0) + tested)
        does = POISON if planned.name == POISON else f"{condition.repair.name}/{planned.name}"
        yield StageWork(planned.name, planned.fingerprint, does, count, units, planned.shared, recipe is not None)


def _training_of(surrogate: PlannedSurrogate, max_batches: int | None) -> StageWork:
    """That of a poison stage, and for each step of an adversary all images once more."""
    poison, *_ = _stages(surrogate.condition, max_batches)
    _, images = next(stage_images(surrogate.condition, max_batches))
    more = surrogate.adversary.steps * images * _area(surrogate.condition) if surrogate.adversary else 0.0
    step = f"{SURROGATE}/{surrogate.recipe.training}"
    fingerprint, units = surrogate.stage.fingerprint, poison.units + more
    return replace(poison, name=SURROGATE, fingerprint=fingerprint, step=step, units=units)


def _area(condition: Condition) -> float:
    return condition.data.image_size**2 / _REFERENCE_PIXELS


def _tested(condition: Condition, recipe: Optimization | None, epochs: int) -> float:
    """Test pictures that go through a stage, clean and triggered."""
    limit, whole = condition.data.test_limit, _TEST_PART * training_set_size(condition.data)
    whole = min(whole, limit) if limit else whole
    if recipe is None:
        return 2 * whole
    between = min(whole, recipe.evaluate.test_limit or whole)
    return 2 * (whole + between * max(0, epochs - 1) / recipe.evaluate.every)
