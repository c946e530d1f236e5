"""Which samples of the poisoned training set a stage of a repair trains on: a detector decides it alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bdray.errors import ConditionError
from bdray.models.networks.taps import evaluating
from bdray.randomness import watching
from bdray.repairs.base import Training
from bdray.seeds import stream
from bdray.trial.asking import shown_of, tools_of
from bdray.trial.repair_inputs import clean_set
from bdray.trial.setup import Experiment

FEWEST = 2
"""Samples that can be trained on: statistics of a batch need two."""


def chosen_samples(
    experiment: Experiment, training: Training, model: nn.Module, tick: Callable[[int, int], None]
) -> torch.Tensor:
    """Of the poisoned training set those that the stage trains on: bool, in the order of its items, on the CPU.

    Args:
        model: what the detector is asked of; left as it is.

    Raises:
        ConditionError: they are too few to train on.
    """
    among = training.among
    assert among is not None
    shown = shown_of(experiment.stamped_set)
    generator = stream(experiment.condition.seed, "repair", training.name, "among")
    tools = tools_of(experiment, clean_set(experiment), generator, tick)
    with evaluating(model), watching(among.detector, among.detector.title):
        flagged = among.detector.flagged(among.detector.score(model, shown, tools), shown.labels)
    tick(len(flagged), len(flagged))
    kept = flagged if among.flagged else ~flagged
    if int(kept.sum()) < FEWEST:
        does = "flags" if among.flagged else "leaves"
        problem = f"{among.detector.name} {does} {int(kept.sum())} of {len(kept)} samples: too few to train on"
        # Of `filtered` the detector decides, of `abl` an option of its own.
        raise ConditionError("repair", problem)
    return kept
