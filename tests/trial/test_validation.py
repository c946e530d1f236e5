"""A repaired model on clean pictures that no stage trains on, against a count by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bdray.condition import Condition
from bdray.questions import Questions
from bdray.recipes import Evaluate
from bdray.store.storage import Storage
from bdray.trial import TrialOptions, run_trial
from bdray.trial.repair_inputs import shape_model
from bdray.trial.setup import Experiment

RECIPE = {"epochs": 1, "batch_size": 16, "precision": "float32"}
CONTENT: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 200, "test_limit": 20},
    "model": "resnet8",
    "trigger": "patch",
    "poison": {"rate": 0.2},
    "train": RECIPE,
    "finetune": {**RECIPE, "fraction": 0.05},
}


def options(folder: Path, **more: Any) -> TrialOptions:
    return TrialOptions(device="cpu", threads=1, cache=folder / "cache", **more)


@pytest.mark.parametrize("repair", ["finetune", "fine_pruning"])
def test_it_is_the_accuracy_of_the_model_at_the_end(tmp_path: Path, repair: str) -> None:
    condition = Condition.parse({**CONTENT, "repair": repair})
    sweep = Storage.open(tmp_path / "sweep")
    record = run_trial(condition, sweep=sweep, options=options(tmp_path, keep_models=True))
    experiment = Experiment.prepare(condition, torch.device("cpu"), tmp_path / "cache")
    chosen = torch.from_numpy(experiment.split.validation_indices)
    model = experiment.build_model()
    for step in condition.repair_stages:
        shape_model(experiment, step, model)
    model.load_state_dict(load_file(tmp_path / "sweep" / "conditions" / condition.condition_id / "model.safetensors"))
    with torch.no_grad():
        answers = model.eval()(experiment.normalize(experiment.images[chosen].float() / 255)).argmax(1)
    correct = (answers == experiment.labels[chosen]).double().mean()
    assert record.validation is not None
    assert record.validation.images == len(chosen) == 4
    assert record.validation.clean_accuracy == pytest.approx(float(correct))


def test_it_changes_no_number_and_can_be_left_out(tmp_path: Path) -> None:
    condition = Condition.parse(CONTENT)
    without = Questions(evaluate=Evaluate(select=None))
    records = [
        run_trial(condition, sweep=Storage.open(tmp_path / name), options=options(tmp_path, questions=questions))
        for name, questions in (("with", Questions()), ("without", without))
    ]
    assert [record.validation is None for record in records] == [False, True]
    first, second = ([(epoch.loss, epoch.rates) for one in record.stages for epoch in one.epochs] for record in records)
    assert first == second
