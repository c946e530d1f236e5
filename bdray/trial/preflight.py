"""Every stage of a condition tried for one step, before the first of them costs its hours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from bdray.condition import digest
from bdray.errors import ConditionError
from bdray.models.networks.coverage import pixels_seen
from bdray.models.networks.taps import Outputs
from bdray.randomness import GlobalRandomnessError
from bdray.repairs.base import Operation, Training
from bdray.training.device import forked_generators
from bdray.training.evaluation import CleanSet
from bdray.training.loop import Stage, StepGenerators, augmented_batches, train_step, watched_stage
from bdray.trial.choosing import chosen_samples
from bdray.trial.repair_inputs import clean_set, run_operation, shape_model, tools_for, training_stage
from bdray.trial.setup import Experiment
from bdray.trial.visibility import attack_examples

LEAST_SEEN = 0.5
"""Of the pixels that a trigger changes, the smallest part that the network has to see (our choice)."""

_FEW = 2
"""Pictures of a step, of a stage that has so many: batch statistics need two."""

_SAMPLED = 8
"""Test images on which a trigger is looked at."""

_tried: set[str] = set()
"""Kinds of stages, each with what comes before it, that have worked in this process."""


def try_stages(experiment: Experiment) -> None:
    """One step of every stage, with a model of its own; of an operation what it prepares, and how it begins. Once for
    each kind of stage in a process. Draws from no stream and leaves torch's generators as they were.

    Raises:
        ConditionError: a stage cannot work, or the network does not see the trigger. Whatever else a stage raises in
            its first step, it raises here.
    """
    condition = experiment.condition
    _require_seen_trigger(experiment)
    kinds = list(_kinds(experiment))
    if _tried.issuperset(kinds):
        return
    model = experiment.build_model().train()
    _take_step(experiment.poison_stage(), model, "data.train_limit")
    for step in condition.repair_stages:
        if isinstance(step, Training) and step.among:
            _begin_to_choose(experiment, step, model)
        shape_model(experiment, step, model)
        if isinstance(step, Operation):
            _begin(experiment, step, model)
        elif step.recipe.epochs:
            few = "data.train_limit" if step.data == "poisoned" else "finetune.fraction"
            _take_step(training_stage(experiment, step), model, few)
    _tried.update(kinds)


def _kinds(experiment: Experiment) -> Iterator[str]:
    """Names all that decides whether a stage works: of a recipe not its numbers."""
    condition, split = experiment.condition, experiment.split
    before = digest(
        {
            "model": condition.model.identity(),
            "data": [condition.data.image_size, experiment.data.num_classes, len(split.train_indices) < _FEW],
            "regularizer": condition.regularizer.identity(),
            "train": [condition.train.optimizer, condition.train.augment],
            "late": [condition.poison.stamp, condition.trigger.identity()] if condition.trigger else [],
            "on": [str(experiment.compute.device), experiment.precision, experiment.place],
        }
    )
    yield before
    for step in condition.repair_stages:
        kind: object = step.identity()
        if not isinstance(step, Operation):
            recipe = step.recipe
            kind = [step.name, recipe.optimizer, recipe.augment, recipe.precision, recipe.layers, bool(recipe.epochs)]
            kind += [dict(step.content), step.data, step.among.identity() if step.among else None]
        before = digest({"after": before, "stage": kind, "alone": len(split.clean_indices) < _FEW})
        yield before


def _take_step(stage: Stage, model: nn.Module, too_few: str) -> None:
    """A step that changes no weight, on its smallest batch. `too_few`: the option that decides how many it has."""
    device, order = stage.compute.device, torch.arange(min(_FEW, len(stage.source)))
    still = replace(stage, lr=0.0)
    generators = StepGenerators.of(stage, 0)
    (batch,) = augmented_batches(stage, 0, [order], generators.augment)
    rows = next(stage.late.rows([order], device)) if stage.late else ()
    try:
        with forked_generators(device):
            train_step(watched_stage(still), still.start(model), *batch, generators, late_rows=rows)
    except ValueError as error:
        if len(order) >= _FEW:
            raise
        problem = f"leaves the {stage.name} stage one image, and this network cannot be trained on one ({error})"
        raise ConditionError(too_few, problem) from error


class _BegunError(Exception):
    """An operation has begun."""


class _Beginning(CleanSet):
    """Ends an operation that asks what the model makes of the clean set, once that is known to work. So does one that
    says how far it is."""

    def outputs(self, model: nn.Module, batch_size: int = _FEW) -> Outputs:
        CleanSet(self.images[:_FEW], self.labels[:_FEW], self.normalize, self.compute).outputs(model)
        raise _BegunError


def _begin(experiment: Experiment, operation: Operation, model: nn.Module) -> None:
    """Begin an operation: with the first pictures alone where that is enough for it."""
    chosen = experiment.split.clean_indices
    few = replace(experiment, split=replace(experiment.split, clean_indices=chosen[:_FEW]))
    with suppress(_BegunError):
        try:
            _operate(few, operation, model)
        except (_BegunError, GlobalRandomnessError):
            raise
        except Exception:
            _operate(experiment, operation, model)


def _operate(experiment: Experiment, operation: Operation, model: nn.Module) -> None:
    clean = clean_set(experiment)
    beginning = _Beginning(clean.images, clean.labels, clean.normalize, clean.compute)

    def tick(done: int, total: int, *, point: bool = False) -> None:
        raise _BegunError

    run_operation(experiment, operation, model, replace(tools_for(experiment, operation, tick), clean=beginning))


def _begin_to_choose(experiment: Experiment, training: Training, model: nn.Module) -> None:
    """Ask the detector that a stage trains among the choice of, until it says how far it is."""

    def tick(done: int, total: int) -> None:
        raise _BegunError

    with suppress(_BegunError):
        chosen_samples(experiment, training, model, tick)


def _require_seen_trigger(experiment: Experiment) -> None:
    condition = experiment.condition
    network, side = condition.model, condition.data.image_size
    if condition.trigger is None or condition.is_baseline:
        return
    clean, stamped = attack_examples(experiment, _SAMPLED)
    changed = (clean != stamped).any(1)
    before, after = int(changed.sum()), int((changed & pixels_seen(network, side)).sum())
    if after < LEAST_SEEN * before:
        # A network that leaves out more than a row and a column is refused with the sizes that it sees whole.
        experiment.build_model()
        problem = (
            f"{network.name} sees {after} of the {before} pixels that the trigger changes in {len(clean)} images of "
            f"{side} x {side} pixels: place it elsewhere, or use images of another size"
        )
        raise ConditionError("trigger.name", problem)
