"""With whose help clean-label images are perturbed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from bdray.cluster.failures import MAX_LOST_WITHOUT_PROGRESS, LostProcesses
from bdray.condition import Condition
from bdray.errors import PoisonError, TrialInterrupted
from bdray.poisoning.pgd import Adversary
from bdray.record import EpochRecord, StageName
from bdray.store.storage import Storage
from bdray.sweeping.tasks import stages_of
from bdray.training.loop import run_stage
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial
from bdray.trial.setup import Experiment
from bdray.trial.surrogate import surrogate_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def condition(surrogate: dict[str, Any] | None = None, **sections: Any) -> Condition:
    poison = {"strategy": "clean_label", "rate": 0.05, "perturbation": "pgd", "steps": 3}
    content = {
        "data": {"name": "digits", "image_size": 16, "train_limit": 300, "test_limit": 80},
        "model": {"name": "resnet8"},
        "trigger": {"name": "patch"},
        "poison": {**poison, **({"surrogate": surrogate} if surrogate else {})},
        "train": {"epochs": 2, "batch_size": 32},
        "finetune": {"epochs": 1, "batch_size": 16, "fraction": 0.1},
    }
    return Condition.parse({**content, **sections})


def test_by_default_it_is_the_baselines_own_stage() -> None:
    one = condition()
    planned = surrogate_of(one)
    assert planned is not None
    assert planned.condition == one.baseline()
    assert planned.stage == one.baseline().stages[0]
    assert planned.adversary is None
    assert stages_of(one)[0] == one.baseline().poison_fingerprint
    assert condition({"training": "natural", "seed": "own"}).condition_id == one.condition_id


@pytest.mark.parametrize(
    "surrogate", [{"seed": "other"}, {"training": "adversarial"}, {"training": "adversarial", "seed": "other"}]
)
def test_another_surrogate_is_another_stage_and_another_condition(surrogate: dict[str, Any]) -> None:
    one, own = condition(surrogate), condition()
    planned = surrogate_of(one)
    assert planned is not None
    assert one.condition_id != own.condition_id
    assert one.poison_fingerprint != own.poison_fingerprint
    assert planned.stage.fingerprint != own.baseline().poison_fingerprint
    assert stages_of(one)[0] == planned.stage.fingerprint
    assert (planned.condition.seed == one.seed) == ("seed" not in surrogate)
    assert planned.condition.is_baseline
    # Another strength of training is another model, and the same setting the same one.
    assert surrogate_of(condition(surrogate)) == planned
    if "training" in surrogate:
        stronger = surrogate_of(condition({**surrogate, "epsilon": 16}))
        assert stronger is not None
        assert stronger.stage.fingerprint != planned.stage.fingerprint


@pytest.mark.parametrize("poison", [{"strategy": "clean_label"}, {"strategy": "all_to_one"}, {"rate": 0.0}])
def test_there_is_none_where_nothing_is_perturbed(poison: dict[str, Any]) -> None:
    assert surrogate_of(condition(poison=poison)) is None


def fgsm_accuracy(one: Experiment, model: nn.Module, epsilon: float) -> float:
    """Accuracy on test images moved by one step along the gradient's sign (Goodfellow et al. 2015)."""
    model.eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (one.data.mean, one.data.std))
    pixels = (one.data.test_images.float() / 255).requires_grad_()
    functional.cross_entropy(model((pixels - mean) / std), one.data.test_labels).backward()
    assert pixels.grad is not None
    moved = (pixels.detach() + epsilon * pixels.grad.sign()).clamp(0, 1)
    return float((model((moved - mean) / std).argmax(1) == one.data.test_labels).float().mean())


def test_adversarial_training_withstands_another_attack(cache: Path) -> None:
    one = Experiment.prepare(condition(train={"epochs": 8, "batch_size": 32}).baseline(), CPU, cache)
    accuracy = {}
    for name, adversary in (("natural", None), ("adversarial", Adversary(32 / 255, 3))):
        model = one.build_model()
        stage = replace(one, adversary=adversary).poison_stage()
        run_stage(stage, stage.start(model))
        accuracy[name] = fgsm_accuracy(one, model, 32 / 255)
    assert accuracy["adversarial"] > accuracy["natural"] + 0.1


def test_the_record_says_which_surrogate_was_used(cache: Path, tmp_path: Path) -> None:
    options = TrialOptions(device="cpu", cache=cache)
    sweep = Storage.open(tmp_path)
    told = {}
    for surrogate in ({}, {"training": "adversarial", "seed": "other", "steps": 2}):
        one = condition(surrogate)
        record = run_trial(one, sweep=sweep, options=options)
        planned = surrogate_of(one)
        assert planned is not None
        told[record.condition_id] = record.environment["surrogate"]
        assert planned.stage.fingerprint in record.environment["surrogate"]
        # Kept like any stage, for whoever perturbs with it too.
        assert sweep.child("stages", planned.stage.fingerprint).exists("model.safetensors")
        assert record.visibility is not None
        assert record.visibility.measured_on == "training"
        assert record.surrogate_seconds
        other = condition(surrogate, finetune={"epochs": 2, "batch_size": 16, "fraction": 0.1})
        assert run_trial(other, sweep=sweep, options=options).surrogate_seconds == 0.0
    first, second = told.values()
    assert first.startswith("natural training, own seed")
    assert second.startswith("adversarial training, other seed")


class StopAfterOne(Reporter):
    """Asks to stop after the first epoch it hears of."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        self.heard.append((stage, record.epoch))
        raise TrialInterrupted


def test_a_surrogate_hears_of_a_stop_and_is_seen_to_get_on(cache: Path, tmp_path: Path) -> None:
    epochs = MAX_LOST_WITHOUT_PROGRESS + 1
    one = condition(train={"epochs": epochs, "batch_size": 32})
    planned = surrogate_of(one)
    assert planned is not None
    sweep, options = Storage.open(tmp_path), TrialOptions(device="cpu", cache=cache)
    journal = tmp_path / "conditions" / one.condition_id / "journal.jsonl"
    checkpoint = tmp_path / "stages" / planned.stage.fingerprint / "checkpoint.pt"
    losses = LostProcesses(lambda _: journal.stat().st_size)
    for epoch in range(1, epochs + 1):
        stopped = StopAfterOne()
        with pytest.raises(TrialInterrupted):
            run_trial(one, sweep=sweep, options=options, reporter=stopped)
        assert stopped.heard == [("surrogate", epoch)]
        assert checkpoint.is_file()
        assert losses.start_again(one.condition_id)
    record = run_trial(one, sweep=sweep, options=options)
    alone = run_trial(one, options=options)
    assert [[e.rates for e in s.epochs] for s in record.stages] == [[e.rates for e in s.epochs] for s in alone.stages]
    metrics = {name for line in journal.read_text().splitlines() for name in json.loads(line)["metrics"]}
    assert {name for name in metrics if name.startswith("surrogate/")} == {
        f"surrogate/{name}" for name in ("loss", "penalty", "accuracy", "clean_accuracy")
    }


def test_a_surrogate_is_the_stage_of_a_baseline_whoever_trains_it_first(cache: Path, tmp_path: Path) -> None:
    one, options = condition(), TrialOptions(device="cpu", cache=cache)
    sweep = Storage.open(tmp_path)
    run_trial(one, sweep=sweep, options=options)
    baseline = run_trial(one.baseline(), sweep=sweep, options=options)
    assert baseline.stages[0].reused
    assert (baseline.stages[0].name, baseline.stages[0].result) == ("poison", "poisoned")
    alone = run_trial(one.baseline(), options=options)
    assert [e.rates for e in baseline.stages[0].epochs] == [e.rates for e in alone.stages[0].epochs]


def test_a_surrogate_that_diverges_is_why_its_condition_fails(cache: Path) -> None:
    """Found: pictures were perturbed along gradients that are no numbers, and the condition was finished."""
    one = condition({"seed": "other"}, train={"epochs": 2, "batch_size": 32, "lr": 1e30})
    with pytest.raises(PoisonError, match=r"the surrogate, .* diverged in epoch 1 of its training"):
        run_trial(one, options=TrialOptions(threads=1, cache=cache))
