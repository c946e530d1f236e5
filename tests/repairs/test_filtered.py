"""Retraining without what a detector flags: who is left, what is trained on, and who is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bdray.condition import Condition
from bdray.detectors import DETECTORS, TrainingSetDetector
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.errors import ConditionError
from bdray.repairs import Among, Training
from bdray.store.storage import Storage
from bdray.trial import TrialOptions, run_trial
from bdray.trial.choosing import chosen_samples
from bdray.trial.repair_inputs import training_stage
from bdray.trial.setup import Experiment

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 120, "test_limit": 20},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "poison": {"strategy": "all_to_one", "rate": 0.2},
    "train": {"epochs": 1, "batch_size": 32, "precision": "float32"},
    "finetune": {"epochs": 1, "batch_size": 32, "precision": "float32"},
}
CPU = torch.device("cpu")


def condition(repair: Any, **sections: Any) -> Condition:
    return Condition.parse({**SMALL, "repair": repair, **sections})


def filtered(**detector: Any) -> dict[str, Any]:
    return {"name": "filtered", "epochs": 1, "detector": {"name": "spectral_signatures", **detector}}


@pytest.mark.parametrize("stamp", ["before_augmentation", "after_augmentation"])
def test_it_trains_on_what_the_detector_leaves(stamp: str) -> None:
    poison = {**SMALL["poison"], "stamp": stamp}
    experiment = Experiment.prepare(condition(filtered(expected=0.3), poison=poison), CPU)
    (training,) = experiment.condition.repair_stages
    assert isinstance(training, Training)
    model = experiment.build_model()
    kept = chosen_samples(experiment, training, model, lambda done, total: None)
    stage = training_stage(experiment, training, kept)

    every, left = experiment.poisoned_set, kept.nonzero().flatten()
    assert 0 < len(left) < len(every)
    assert len(stage.source) == len(left)
    for found, expected in zip(stage.source.gather(torch.arange(len(left))), every.gather(left), strict=True):
        assert torch.equal(found, expected)
    if stamp == "after_augmentation":
        assert every.late is not None
        assert stage.late is not None
        assert torch.equal(stage.late.stamps[0][1], every.late.stamps[0][1][left])
    labels = every.labels
    for label in labels.unique():
        gone = int((~kept[labels == label]).sum())
        assert gone == int(0.45 * int((labels == label).sum()))


def test_a_record_says_how_many_were_left(tmp_path: Path) -> None:
    one = condition(filtered(), finetune={**SMALL["finetune"], "epochs": 0})
    assert one.clean_fraction == 0
    record = run_trial(one, sweep=Storage.open(tmp_path), options=TrialOptions(device="cpu", cache=tmp_path / "cache"))
    assert record.status == "finished"
    details = record.stages[-1].details
    assert record.data is not None
    assert details["samples"] == record.data.train_images
    chosen = details["chosen_samples"]
    assert isinstance(chosen, int)
    assert 0.8 * record.data.train_images < chosen < record.data.train_images
    assert record.stages[-1].epochs[-1].images == details["chosen_samples"]


class Everything(TrainingSetDetector):
    """Flags all."""

    SOURCE = "test"

    def score(self, model: torch.nn.Module, items: Labelled, tools: DetectorTools) -> torch.Tensor:
        return torch.ones(len(items.images)).double()

    def flagged(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return scores > 0


def test_nothing_left_is_an_error() -> None:
    DETECTORS.register("test_everything")(Everything)
    experiment = Experiment.prepare(condition(filtered()), CPU)
    recipe = experiment.condition.finetune
    training = Training(recipe, "again", "retrained", data="poisoned", among=Among(Everything()))
    with pytest.raises(ConditionError, match="test_everything leaves 0 of 108 samples: too few to train on"):
        chosen_samples(experiment, training, experiment.build_model(), lambda done, total: None)


def test_the_detector_is_part_of_what_the_stage_is() -> None:
    prints = [condition(filtered(**options)).stages[-1].fingerprint for options in ({}, {"expected": 0.2}, {})]
    assert prints[0] == prints[2] != prints[1]
    assert condition(filtered()).poison_fingerprint == condition("none").poison_fingerprint


@pytest.mark.parametrize(
    ("detector", "problem"),
    [
        ("strip", r"repair\.detector\.name: .*'strip' cannot be asked here; these can: .*spectral_signatures"),
        ({"name": "spectral_signatures", "expect": 0.1}, r"repair\.detector\.expect"),
        (3, r"repair\.detector: must be a mapping"),
        ({"name": "spectre", "of": "repaired"}, r"repair\.detector\.of: is for `detect` only.*got 'repaired'"),
    ],
)
def test_what_is_wrong_is_said(detector: Any, problem: str) -> None:
    with pytest.raises(ConditionError, match=problem):
        condition({"name": "filtered", "detector": detector})
