"""Probes of models whose answer is known beforehand, because they look at one pixel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import rates, stage
from torch import nn

from bdray.attacks import lacks_tests, own_probes, probes_for, probes_of
from bdray.condition import Condition
from bdray.questions import Questions
from bdray.recipes import Evaluate
from bdray.record import StageRecord
from bdray.results.unmeasured import unmeasured
from bdray.store.condition_folder import ConditionFolder
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, attempt_trial, run_trial
from bdray.trial.probing import Probing
from bdray.trial.setup import Experiment
from bdray.triggers.base import build_trigger

TARGET, OTHER = 0, 3
CONTENT: dict[str, Any] = {
    "data": {"name": "digits"},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch", "style": "solid"},
    "poison": {"rate": 0.1},
}
PROBES = Questions(evaluate=Evaluate(probes=True))
SWEEP = [
    Condition.parse(CONTENT),
    Condition.parse({**CONTENT, "trigger": {"name": "pixel"}}),
    Condition.parse({**CONTENT, "trigger": {"name": "patch", "size": 7, "style": "solid"}}),
]


class Bright(nn.Module):
    """Answers `TARGET` where one pixel is bright, else `OTHER`."""

    def __init__(self, row: int, column: int, experiment: Experiment) -> None:
        super().__init__()
        self.place = row, column
        self.level = (0.9 - experiment.data.mean[0]) / experiment.data.std[0]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        row, column = self.place
        bright = pixels[:, 0, row, column] > self.level
        return nn.functional.one_hot(torch.where(bright, TARGET, OTHER), 10).float()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.prepare(SWEEP[0], torch.device("cpu"), tmp_path_factory.mktemp("cache"))


def ended(result: str) -> StageRecord:
    return stage(rates(0.5, clean=0.25, clean_images=359, attacked_images=7), result=result)


@pytest.mark.parametrize(("row", "column"), [(28, 28), (30, 30), (16, 16), (24, 24), (8, 12)])
def test_rates_are_those_counted_by_hand(experiment: Experiment, row: int, column: int) -> None:
    clean = experiment.data.test_images[experiment.data.test_labels != TARGET]
    labels = experiment.data.test_labels[experiment.data.test_labels != TARGET]
    pictures = {
        "off_position": clean.clone(),
        "part": clean.clone(),
        "pixel": build_trigger("pixel").stamp(clean),
        "patch": build_trigger("patch", size=7, style="solid").stamp(clean),
    }
    pictures["off_position"][:, :, 16:19, 16:19] = 255
    pictures["part"][:, :, 28:31, 28:30] = 255

    probing = Probing(experiment, own_probes(experiment.condition, probes_of(SWEEP)))
    probing.measure(Bright(row, column, experiment), ended("poisoned"))
    probing.measure(Bright(0, 0, experiment), ended("finetuned"))
    found = {
        each.trigger["name"] if each.variation == "whole" else each.variation: each.rates for each in probing.records()
    }
    assert list(found) == ["off_position", "part", "pixel", "patch"]
    for name, stamped in pictures.items():
        bright = stamped[:, 0, row, column].double() / 255 > 0.9
        rates = found[name]["poisoned"]
        assert rates.attack_success_rate == bright.double().mean().item(), name
        assert rates.robust_accuracy == (~bright & (labels == OTHER)).double().mean().item(), name
        assert rates.attacked_images == len(clean)
        assert (rates.clean_accuracy, rates.clean_images) == (0.25, 359), "those of the stage"
        assert found[name]["finetuned"].attack_success_rate == 0.0, "corners of digits are black"
    if (row, column) == (28, 28):
        assert [found[name]["poisoned"].attack_success_rate for name in ("off_position", "part")] == [0.0, 1.0]


def test_a_condition_and_its_baseline_are_measured_under_the_same_probes(tmp_path: Path) -> None:
    small = {
        **CONTENT,
        "data": {"name": "digits", "image_size": 16, "train_limit": 150, "test_limit": 60},
        "train": {"epochs": 1, "batch_size": 32},
        "finetune": {"epochs": 1, "batch_size": 16, "fraction": 0.1},
    }
    one = Condition.parse(small)
    sweep = probes_of([one, Condition.parse({**small, "trigger": {"name": "blend"}})], varied=True)
    options = TrialOptions(device="cpu", cache=tmp_path / "cache", probes=sweep, questions=PROBES)
    folder = Storage.open(tmp_path / "sweep")
    record = run_trial(one, sweep=folder, options=options)
    baseline = run_trial(one.baseline(), sweep=folder, options=options)
    assert [(each.variation, each.trigger["name"]) for each in record.probes] == [
        ("off_position", "patch"),
        ("part", "patch"),
        ("whole", "blend"),
    ]
    assert all(list(each.rates) == ["poisoned", "finetuned"] for each in record.probes)
    assert {each.probe for each in record.probes} <= {floor.probe for floor in baseline.floors}
    assert (record.floors, baseline.probes) == ((), ())

    longer = Condition.parse({**small, "finetune": {**small["finetune"], "epochs": 2}})
    plain = run_trial(longer, sweep=folder, options=replace(options, questions=Questions()))
    assert plain.stages[0].reused, "probes change no model"
    assert plain.probes == ()
    assert plain.poisoned == record.poisoned


TINY: dict[str, Any] = {
    **CONTENT,
    "data": {"name": "digits", "image_size": 8, "train_limit": 150, "test_limit": 60},
    "train": {"epochs": 1, "batch_size": 32, "precision": "float32"},
    "finetune": {"epochs": 1, "batch_size": 16, "fraction": 0.1, "precision": "float32"},
}


def given_without_test_pictures(folder: Path) -> Condition:
    """An attack whose file holds some training pictures alone."""
    clean = Condition.parse(TINY).data.load().train_images[:50].permute(0, 2, 3, 1).numpy()
    np.savez(folder / "given.npz", clean=clean, stamped=255 - clean)
    return Condition.parse({**TINY, "trigger": {"name": "given", "path": str(folder / "given.npz")}})


def test_a_trigger_that_fails_costs_a_finished_baseline_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    patch, bad, sweep = Condition.parse(TINY), given_without_test_pictures(tmp_path), Storage.open(tmp_path / "sweep")
    baseline, tests = patch.baseline(), probes_of([patch, bad])
    options = TrialOptions(device="cpu", threads=1, probes=tests[:1])
    before = attempt_trial(baseline, sweep=sweep, options=options)
    after = attempt_trial(baseline, sweep=sweep, options=replace(options, probes=tests))
    assert after == read_record(sweep, baseline.condition_id)
    (failed,) = after.unmeasured
    assert (failed.what, failed.key) == ("floor", tests[1].key)
    assert "given" in failed.attack
    assert failed.error.startswith("TriggerError: ")
    assert after.model_copy(update={"unmeasured": ()}) == before, "nothing else has changed"
    assert ConditionFolder(sweep, baseline.condition_id).mended(baseline) is not None
    (said,) = unmeasured([after])
    assert baseline.condition_id in said and failed.error in said and "--retry-failed" in said

    assert (lacks_tests(after, tests), lacks_tests(after, tests, again=True)) == (False, True)
    again = attempt_trial(baseline, sweep=sweep, options=replace(options, probes=tests))
    assert again == after, "a second failure takes the place of the first"
    clean = baseline.data.load().test_images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "whole.npz", clean=clean, stamped=255 - clean)
    whole = replace(tests[1], trigger=build_trigger("given", path=str(tmp_path / "whole.npz")))
    mended = attempt_trial(baseline, sweep=sweep, options=replace(options, probes=(tests[0], whole)))
    assert [floor.probe for floor in mended.floors] == [tests[0].key, whole.key]


def test_of_a_condition_that_trains_a_probe_that_fails_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    patch, bad, sweep = Condition.parse(TINY), given_without_test_pictures(tmp_path), Storage.open(tmp_path / "sweep")
    options = TrialOptions(device="cpu", threads=1, probes=probes_of([bad, patch]), questions=PROBES)
    for condition in (patch, patch.baseline()):
        record = attempt_trial(condition, sweep=sweep, options=options)
        assert record.status == "finished"
        assert [each.what for each in record.unmeasured] == ["floor" if condition.is_baseline else "probe"]
        assert len(record.floors or record.probes) == 1
        tests = probes_for(condition, options.probes, probed=True)
        assert (lacks_tests(record, tests), lacks_tests(record, tests, again=True)) == (False, True)
        # Run again, it is tried again, and nothing else.
        assert attempt_trial(condition, sweep=sweep, options=options) == record


@pytest.mark.parametrize("error", [ValueError("no"), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")])
def test_an_attempt_that_fails_leaves_a_finished_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever the attempt fails by: a whole GPU whose memory others took, too."""

    class Fails(Reporter):
        def data(self, *args: Any) -> None:
            raise error

    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    baseline, tests = (
        Condition.parse(TINY).baseline(),
        probes_of([Condition.parse({**TINY, "trigger": name}) for name in ("patch", "blend")]),
    )
    sweep, options = Storage.open(tmp_path / "sweep"), TrialOptions(device="cpu", threads=1, probes=tests[:1])
    before = attempt_trial(baseline, sweep=sweep, options=options)
    options = replace(options, probes=tests)
    after = attempt_trial(baseline, sweep=sweep, reporter=Fails(), options=options)
    assert after == read_record(sweep, baseline.condition_id)
    assert after.model_copy(update={"unmeasured": ()}) == before
    (failed,) = after.unmeasured
    assert failed.key == tests[1].key and str(error)[:18] in failed.error
    assert ConditionFolder(sweep, baseline.condition_id).mended(baseline) is not None
    mended = attempt_trial(baseline, sweep=sweep, options=options)
    assert (len(mended.floors), mended.unmeasured) == (2, ())
    assert mended.model_copy(update={"floors": before.floors}) == before
