"""What a repair gets of an experiment: its clean set, its stages made concrete, and the tools of its operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from bdray.errors import PoisonError
from bdray.poisoning.base import PoisonPlan
from bdray.poisoning.stamping import PoisonedSet, apply_plan
from bdray.randomness import watched, watching
from bdray.regularizers.base import REGULARIZERS
from bdray.repairs.base import Details, Operation, RepairStage, Training
from bdray.repairs.tools import Tick, Tools
from bdray.seeds import derive_seed, stream
from bdray.shares import comes_to_nothing
from bdray.training.device import make_compute
from bdray.training.evaluation import CleanSet
from bdray.training.loop import Stage
from bdray.trial.setup import NO_INDICES, NOTHING, Experiment, clean_pool, split_of


def training_stage(experiment: Experiment, training: Training, kept: torch.Tensor | None = None) -> Stage:
    """A stage that a repair trains; without a regularizer: it is the attacker's choice, or the owner's.

    Args:
        kept: which of the poisoned samples it trains on, bool, on the CPU; None: all.
    """
    clean = training.data == "clean"
    items = clean_items(experiment) if clean else experiment.poisoned_set
    items = items if kept is None else items.only(kept)
    compute = make_compute(training.recipe.precision, experiment.compute.device, experiment.auto)
    stage = experiment.stage(training.name, training.recipe, items, REGULARIZERS.build("none"), compute)
    fresh, title = training.start == "fresh" and experiment.starts_untrained, experiment.condition.repair.title
    return replace(stage, objective=training.objective, objective_of=title, fresh=fresh)


def tools_for(experiment: Experiment, operation: Operation, tick: Tick) -> Tools:
    """What an operation works with."""
    generator = stream(experiment.condition.seed, "repair", operation.name)
    return Tools(
        generator,
        clean_set(experiment),
        experiment.normalize,
        experiment.compute.autocast,
        tick,
        experiment.max_batches,
    )


def shape_model(experiment: Experiment, step: RepairStage, model: nn.Module) -> None:
    """Give a fresh model the structure of a stage.

    Raises:
        GlobalRandomnessError: a repair from outside the package draws from a global generator.
    """
    with watching(experiment.condition.repair, experiment.condition.repair.title):
        step.prepare(model)


def run_operation(experiment: Experiment, operation: Operation, model: nn.Module, tools: Tools) -> Details:
    """Do it to the model, in place; torch's generators, which dropout draws from, are seeded inside.

    Raises:
        GlobalRandomnessError: a repair from outside the package draws from a global generator.
    """
    device, repair = experiment.compute.device, experiment.condition.repair
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(experiment.condition.seed, "dropout", operation.name))
        with watching(repair, repair.title):
            return operation.operate(model, tools.clean, tools)


def clean_set(experiment: Experiment) -> CleanSet:
    """The pictures that a repair may use, on the device."""
    items = clean_items(experiment)
    images, labels = items.gather(torch.arange(len(items), device=experiment.images.device))
    device = experiment.compute.device
    return CleanSet(images.to(device), labels.to(device), experiment.normalize, experiment.compute)


def asked_clean_set(experiment: Experiment) -> CleanSet:
    """The pictures that detectors get (`Condition.asked_fraction`): those of the repair, where it uses some.

    Raises:
        DataError: there are fewer.
    """
    condition = experiment.condition
    if condition.asked_fraction == condition.clean_fraction:
        return clean_set(experiment)
    if pool := clean_pool(condition, experiment.data, experiment.cache, condition.asked_fraction):
        split = replace(experiment.split, clean_indices=np.arange(len(pool[1])))
        return clean_set(replace(experiment, pool=pool, split=split))
    labels = experiment.data.train_labels.numpy()
    return clean_set(replace(experiment, split=split_of(condition, labels, condition.asked_fraction)))


def clean_items(experiment: Experiment) -> PoisonedSet:
    """The clean set with what of it is stamped, where the pictures of the experiment lie."""
    if experiment.pool is None:
        return experiment.training_set(clean_plan(experiment), experiment.split.clean_indices, late=False)
    images, labels = experiment.pool
    return apply_plan(
        images.to(experiment.images.device),
        labels.to(experiment.images.device),
        clean_plan(experiment),
        experiment.condition.trigger,
        generator=stream(experiment.condition.seed, "trigger", "train"),
        members=torch.from_numpy(experiment.split.clean_indices),
        on_host=images,
    )


def clean_plan(experiment: Experiment) -> PoisonPlan:
    """What of the clean set is stamped (`clean.poisoned_share`); positions where `split.clean_indices` has them.

    Raises:
        PoisonError: the share comes to no picture, or the attack is meant for fewer.
    """
    condition, members = experiment.condition, experiment.split.clean_indices
    share = condition.clean.poisoned_share
    count = round(share * len(members))
    if condition.is_baseline or not share or not len(members):
        return NOTHING
    if problem := comes_to_nothing(share, len(members), "clean images", "clean.poisoned_share"):
        raise PoisonError(f"clean.poisoned_share: {problem}")
    generator = stream(condition.seed, "clean_split", "poison")
    drawn = members[torch.randperm(len(members), generator=generator).numpy()]
    labels = (experiment.data.train_labels if experiment.pool is None else experiment.pool[1]).numpy()
    classes = experiment.data.num_classes
    poison = watched(condition.poison, condition.poison.title)
    chosen = np.sort(drawn[poison.attacked(labels[drawn], classes)][:count])
    if len(chosen) < count:
        problem = f"{count} of {len(members)} clean images are to be poisoned, but the attack is meant for only"
        raise PoisonError(f"clean.poisoned_share: {problem} {len(chosen)}")
    wanted = poison.wanted_labels(labels, classes)[chosen]
    return PoisonPlan(chosen, labels[chosen], wanted, NO_INDICES)
