"""Whether a repaired model gets its backdoor back from a few triggered pictures: the retuning attack.

Min et al. 2024, "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense", arXiv 2410.09838.
A model that never had the backdoor, repaired and taught alike, tells getting back from learning anew. Everything that
is drawn comes from the stream `relearn` of the condition's seed and the attack, so both are shown the same pictures.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from bdray.attacks import Probe
from bdray.poisoning.stamping import PoisonedSet
from bdray.questions import relearn_key
from bdray.randomness import watched
from bdray.recipes import EvaluationTimes, Finetune, Relearn
from bdray.record import Relearnt
from bdray.regularizers.base import REGULARIZERS
from bdray.seeds import stream
from bdray.training.evaluation import TestSet
from bdray.training.loop import Stage, run_stage
from bdray.training.reporter import Reporter
from bdray.trial.setup import Experiment


def relearn(experiment: Experiment, model: nn.Module, recipe: Relearn, probe: Probe, reporter: Reporter) -> Relearnt:
    """Teach `model` an attack and measure it. It keeps the weights that it came with."""
    begun, was_training = time.monotonic(), model.training
    trainable = {name: weight.requires_grad for name, weight in model.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pictures, triggered = _pictures(experiment, recipe, probe)
    stage = _stage(experiment, recipe, pictures, _test(experiment, probe))

    def on_batch(epoch: int, batch: int, batches: int) -> None:
        reporter.batch("relearn", epoch, stage.epochs, batch, batches)

    try:
        state = run_stage(stage, stage.start(model), on_batch=on_batch)
        rates = (state.evaluation or stage.evaluate(model)).rates()
    finally:
        model.load_state_dict(before)
        for name, weight in model.named_parameters():
            weight.requires_grad_(trainable[name])
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return Relearnt(
        key=relearn_key(recipe, probe.key),
        relearn=recipe.model_dump(mode="json"),
        attack=probe.key,
        triggered=triggered,
        clean=len(pictures) - triggered,
        rates=rates,
        seconds=time.monotonic() - begun,
    )


def _pictures(experiment: Experiment, recipe: Relearn, probe: Probe) -> tuple[PoisonedSet, int]:
    """What is shown, on the device, the triggered pictures first, and how many those are."""
    data, seed = experiment.data, experiment.condition.seed
    generator = stream(seed, "relearn", probe.key)
    members = experiment.split.train_indices
    drawn = members[torch.randperm(len(members), generator=generator).numpy()]
    labels, poison = data.train_labels.numpy(), watched(probe.poison, probe.poison.title)
    attacked = drawn[poison.attacked(labels[drawn], data.num_classes)][: recipe.triggered]
    others = drawn[~np.isin(drawn, attacked)][: recipe.clean]
    wanted = poison.wanted_labels(labels, data.num_classes)[attacked]
    originals = data.train_images[torch.from_numpy(attacked)]
    stamped = probe.trigger.stamp(originals, generator=stream(seed, "relearn", probe.key, "trigger"))
    images = torch.cat([stamped, data.train_images[torch.from_numpy(others)]]).to(experiment.compute.device)
    shown = torch.from_numpy(np.concatenate([wanted, labels[others]])).to(images.device)
    rows = torch.arange(len(images), device=images.device)
    return PoisonedSet(images, shown, images[:0], torch.full_like(rows, -1), rows), len(attacked)


def _test(experiment: Experiment, probe: Probe) -> TestSet:
    """All clean test pictures, and those of the attack."""
    own = experiment.test
    if not experiment.condition.is_baseline:
        return own
    test = experiment.probe_test(probe)
    assert test is not None
    return replace(test, images=own.images, labels=own.labels)


def _stage(experiment: Experiment, recipe: Relearn, pictures: PoisonedSet, test: TestSet) -> Stage:
    plain = Finetune(
        batch_size=min(recipe.batch_size, experiment.condition.train.batch_size),
        epochs=recipe.epochs,
        lr=recipe.lr,
        nesterov=False,
        weight_decay=0.0,
        schedule="constant",
        evaluate=EvaluationTimes(every=recipe.epochs),
    )
    stage = experiment.stage("relearn", plain, pictures, REGULARIZERS.build("none"), experiment.compute)
    return replace(stage, augmentation="none", source=pictures, test=test)
