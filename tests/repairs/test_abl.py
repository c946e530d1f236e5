"""Anti-backdoor learning: its losses by hand, and whom each stage trains on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from retraining import network, stage_of

from bdray.condition import Condition
from bdray.errors import ConditionError
from bdray.repairs import Objective
from bdray.repairs.abl import Ascent, LocalAscent
from bdray.store.storage import Storage
from bdray.training.loop import run_stage
from bdray.trial import TrialOptions, run_trial


def moved_by(objective: Objective) -> torch.Tensor:
    """How far a step moves all weights."""
    model = network()
    before = copy.deepcopy(model)
    stage = stage_of(objective)
    run_stage(stage, stage.start(model))
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    return torch.cat([(now - then).detach().flatten() for now, then in pairs])


def test_loss_is_raised_below_gamma_and_made_small_above() -> None:
    down = moved_by(Objective())
    assert float(down.norm()) > 0
    for objective, sign in ((LocalAscent(0.0), 1), (LocalAscent(100.0), -1), (Ascent(), -1)):
        torch.testing.assert_close(moved_by(objective), sign * down)


def test_each_stage_trains_on_its_part(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "data": {"name": "digits", "image_size": 16, "train_limit": 120, "test_limit": 20},
        "model": {"name": "resnet8"},
        "trigger": {"name": "patch"},
        "train": {"epochs": 1, "batch_size": 32},
        "finetune": {"batch_size": 32},
        "repair": {
            "name": "abl", "isolated": 0.1, "isolation_epochs": 1, "tuning_epochs": 1, "unlearning_epochs": 1,
        },
    }  # fmt: skip
    options = TrialOptions(device="cpu", cache=tmp_path / "cache")
    record = run_trial(Condition.parse(content), sweep=Storage.open(tmp_path), options=options)
    assert record.status == "finished"
    assert [stage.epochs[-1].images for stage in record.stages] == [108, 108, 98, 10]
    assert record.stages[-1].epochs[-1].loss == pytest.approx(record.stages[-1].epochs[-1].loss)
    loss = record.stages[-1].epochs[-1].loss
    assert loss is not None
    assert loss < 0
    again = run_trial(Condition.parse(content), options=options)
    assert [s.epochs[-1].rates for s in again.stages] == [s.epochs[-1].rates for s in record.stages]


def test_too_few_samples_are_no_fault_of_an_option_that_it_has_not() -> None:
    """Found: `repair.detector` was named, which is an option of `filtered`."""
    one = Condition.parse(
        {
            "data": {"name": "digits", "image_size": 8, "train_limit": 100, "test_limit": 20},
            "model": {"name": "resnet8"},
            "trigger": {"name": "patch"},
            "train": {"epochs": 1},
            "repair": {"name": "abl", "isolated": 0.99, "isolation_epochs": 1},
        }
    )
    with pytest.raises(ConditionError, match=r"^repair: lowest_loss leaves 1 of .* too few to train on"):
        run_trial(one, options=TrialOptions(device="cpu", threads=1))
