"""Detectors asked of a trial's model: answers beside the stage and the record, in no id, asked once."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from picture_folders import write_class_folders
from PIL import Image
from torch import nn

from bdray.attacks import lacks_tests, probes_of
from bdray.condition import Condition
from bdray.detectors import DETECTORS, Detector, InputDetector, ModelDetector, TrainingSetDetector
from bdray.detectors.tools import DetectorTools, Labelled, Pictures
from bdray.errors import StageGoneError
from bdray.questions import Questions, answer_key
from bdray.record import Answer, TrialRecord
from bdray.results.detections import detector_table
from bdray.results.tables import result_table
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import MANIFEST
from bdray.store.storage import Storage
from bdray.sweeping.reuse import split_unasked_repaired
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, ask_trial, run_trial
from bdray.trial.asking import Asking
from bdray.trial.setup import Experiment

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 200, "test_limit": 60},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch", "margin": 0, "color": [255, 0, 127]},
    "poison": {"rate": 0.1, "target": 3},
    "train": {"epochs": 1, "batch_size": 32},
    "finetune": {"epochs": 1, "batch_size": 16, "fraction": 0.1},
}
QUICK = Questions((DETECTORS.build("spectral_signatures"), DETECTORS.build({"name": "scale_up", "asked": 20})))


def options(questions: Questions = QUICK) -> TrialOptions:
    return TrialOptions(device="cpu", questions=questions, checkpoint_seconds=0)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    yield


def _stamped(images: torch.Tensor) -> torch.Tensor:
    """Digits are grey."""
    return (images[:, :, -1, -1] == torch.tensor([255, 0, 127])).all(1).double()


class _KnowsSamples(TrainingSetDetector):
    """Knows what the patch looks like."""

    SOURCE: ClassVar[str] = "a test"
    registered_name: ClassVar[str] = "test_knows_samples"

    def score(self, model: nn.Module, items: Labelled, tools: DetectorTools) -> torch.Tensor:
        whole = torch.cat(list(items.images.split(7)))
        assert len(whole) == len(items.labels)
        return _stamped(whole)

    def flagged(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return scores > 0


class _KnowsPictures(InputDetector):
    """The same for pictures."""

    SOURCE: ClassVar[str] = "a test"
    registered_name: ClassVar[str] = "test_knows_pictures"

    def fit(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> Any:
        def score(pictures: Pictures) -> torch.Tensor:
            return _stamped(torch.cat(list(pictures.split(50))))

        return score


class _Third(ModelDetector):
    """Suspects class 3."""

    SOURCE: ClassVar[str] = "a test"
    registered_name: ClassVar[str] = "test_third"

    def score(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> torch.Tensor:
        return torch.eye(tools.num_classes, dtype=torch.float64)[3] * 7

    def flagged(self, scores: torch.Tensor) -> torch.Tensor:
        return scores > 1


class _Shows(_Third):
    """Shows a picture for each class: as bright as the class is high."""

    registered_name: ClassVar[str] = "test_shows"

    def score(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> torch.Tensor:
        levels = torch.arange(tools.num_classes) / 255
        tools.show(levels.view(-1, 1, 1, 1).expand(-1, 3, 128, 128))
        return super().score(model, clean, tools)


class _Fails(_Third):
    """Raises."""

    registered_name: ClassVar[str] = "test_fails"

    def score(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> torch.Tensor:
        raise ValueError("no idea")


class _Draws(_Third):
    """Draws from torch's own generator."""

    registered_name: ClassVar[str] = "test_draws"

    def score(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> torch.Tensor:
        return torch.rand(tools.num_classes, dtype=torch.float64)


def asked(detector: Detector, **sections: Any) -> Answer:
    condition = Condition.parse({**SMALL, **sections})
    experiment = Experiment.prepare(condition, torch.device("cpu"))
    (answer,) = Asking(experiment, [detector], None, Reporter()).ask(experiment.build_model())
    assert answer.error is None
    return answer


@pytest.mark.parametrize("stamp", ["before_augmentation", "after_augmentation"])
def test_whoever_knows_the_patch_finds_every_poisoned_sample(stamp: str) -> None:
    found = asked(_KnowsSamples(), poison={"rate": 0.1, "stamp": stamp, "cover_rate": 0.05, "target": 3})
    assert found.auroc == found.ap == found.tpr_at_1 == found.tpr == 1.0
    assert (found.fpr, found.covers_flagged) == (0.0, 1.0)
    held_out = 20
    assert found.positives == round(0.1 * (200 - held_out))
    assert found.covers == round(0.05 * (200 - held_out))
    assert found.positives + found.negatives + found.covers == 200 - held_out


def test_added_copies_are_samples_too() -> None:
    found = asked(_KnowsSamples(), poison={"rate": 0.1, "mode": "append"})
    assert (found.positives, found.negatives, found.auroc) == (18, 180, 1.0)


def test_inputs_are_as_many_as_asked_for() -> None:
    found = asked(_KnowsPictures(asked=25))
    assert (found.positives, found.negatives) == (25, 25)
    assert (found.auroc, found.tpr, found.fpr) == (1.0, 1.0, 0.0)


def test_a_class_that_is_flagged_is_compared_with_the_target() -> None:
    found = asked(_Third())
    assert found.index is not None
    assert found.index[3] == 7
    assert (found.flagged, found.tpr, found.fpr) == ((3,), 1.0, 0.0)
    assert list(found.sources) == ["detector test_third"]
    missed = asked(_Third(), poison={"rate": 0.1, "target": 5})
    assert (missed.flagged, missed.tpr, missed.fpr) == ((3,), 0.0, pytest.approx(1 / 9))


def test_features_are_those_of_samples_with_the_targets_label() -> None:
    """As many as there are, up to a hundred of a kind; of a baseline, and of other detectors, none."""
    found = asked(_KnowsSamples(), poison={"rate": 0.1, "target": 3, "cover_rate": 0.05}).features
    assert found is not None
    training = Experiment.prepare(Condition.parse({**SMALL}), torch.device("cpu"))
    labels = training.data.train_labels[torch.from_numpy(training.split.train_indices)]
    assert (found.label, len(found.poisoned), len(found.clean)) == (3, 18, int((labels == 3).sum()))
    assert asked(_KnowsSamples(), poison={"rate": 0.0}).features is None
    assert asked(_Third()).features is None


def test_of_what_a_detector_has_recovered_the_targets_is_kept() -> None:
    kept = asked(_Shows(), poison={"rate": 0.1, "target": 5}).recovered
    assert list(kept) == [5]
    with Image.open(io.BytesIO(base64.b64decode(kept[5]))) as picture:
        assert picture.size == (96, 96)
        assert picture.getextrema() == ((5, 5),) * 3
    assert asked(_Third()).recovered == {}


def test_a_baseline_has_false_alarms_alone() -> None:
    nothing: dict[str, Any] = {"trigger": None, "poison": {"rate": 0.0}}
    for detector in (_KnowsSamples(), _KnowsPictures(), _Third()):
        found = asked(detector, **nothing)
        assert (found.positives, found.auroc, found.tpr) == (0, None, None)
        assert found.fpr == (0.1 if isinstance(detector, _Third) else 0.0)


def trial(sweep: Storage, questions: Questions) -> TrialRecord:
    return run_trial(Condition.parse(SMALL), sweep=sweep, options=options(questions))


def timeless(found: TrialRecord) -> list[Answer]:
    return [answer.model_copy(update={"seconds": 0.0}) for answer in found.answers]


def test_answers_are_beside_the_stage_and_the_record_and_change_no_number(tmp_path: Path) -> None:
    plain, sweep = (Storage.open(tmp_path / name).child("sweep") for name in ("plain", "asked"))
    silent, record = trial(plain, Questions()), trial(sweep, QUICK)
    condition = Condition.parse(SMALL)
    assert record.condition_id == silent.condition_id == condition.condition_id
    assert [stage.fingerprint for stage in record.stages] == [stage.fingerprint for stage in silent.stages]
    assert [stage.last.rates for stage in record.stages if stage.last] == [
        stage.last.rates for stage in silent.stages if stage.last
    ]
    folder = ConditionFolder(sweep, record.condition_id)
    assert folder.answers() == record.answers
    kept = sweep.child("stages", condition.poison_fingerprint, "answers").list()
    assert kept == sorted(f"{answer_key(detector, condition)}.json" for detector in QUICK.detect)
    assert "answers" not in json.loads(sweep.read_text(f"conditions/{record.condition_id}/record.json"))
    assert ConditionFolder(plain, record.condition_id).answers() == ()


def test_a_question_that_is_added_later_trains_nothing(tmp_path: Path) -> None:
    sweep = Storage.open(tmp_path / "sweep")
    first = trial(sweep, Questions(QUICK.detect[:1]))
    file = f"conditions/{first.condition_id}/record.json"
    before = sweep.read_bytes(file)

    class Trains(Reporter):
        def epoch(self, *args: Any) -> None:
            raise AssertionError("something is trained")

    condition = Condition.parse(SMALL)
    within: dict[str, Any] = {"sweep": sweep, "reporter": Trains(), "options": options()}
    later = ask_trial(condition, first, **within)
    assert [answer.detector["name"] for answer in later.answers] == ["spectral_signatures", "scale_up"]
    # The first is read, to the second.
    assert later.answers[0] == first.answers[0]
    assert ConditionFolder(sweep, first.condition_id).answers() == later.answers
    assert sweep.read_bytes(file) == before


def test_asked_in_the_trial_or_later_the_answer_is_the_same(tmp_path: Path) -> None:
    at_once, later = (Storage.open(tmp_path / name).child("sweep") for name in ("a", "b"))
    record = trial(at_once, QUICK)
    asked_later = ask_trial(Condition.parse(SMALL), trial(later, Questions()), sweep=later, options=options())
    assert timeless(record) == timeless(asked_later)


@pytest.mark.parametrize("source", ["training set", "folder"])
def test_a_repair_without_clean_pictures_leaves_the_same_for_detectors(tmp_path: Path, source: str) -> None:
    """So the answers of one model are asked for once, whatever is done to it later."""
    shared = Storage.open(tmp_path / "shared")
    untuned = {**SMALL["finetune"], "epochs": 0}
    clean = (
        {"root": str(write_class_folders(tmp_path / "clean", dict.fromkeys(map(str, range(10)), 9)))}
        if source == "folder"
        else {}
    )
    changes: tuple[dict[str, Any], ...] = ({}, {"repair": {"name": "clp"}}, {"finetune": untuned})
    tuned, pruned, kept = (Condition.parse({**SMALL, "clean": clean, **change}) for change in changes)
    assert [c.clean_fraction for c in (tuned, pruned, kept)] == [0.1, 0.0, 0.0]
    assert [c.asked_fraction for c in (tuned, pruned, kept)] == [0.1] * 3
    first = run_trial(tuned, sweep=shared, options=options())
    assert [answer.error for answer in first.answers] == [None, None]
    for condition in (pruned, kept):
        record = run_trial(condition, sweep=shared, options=options())
        assert record.answers == first.answers, "read, with the seconds that they took"
        alone = run_trial(condition, sweep=Storage.open(tmp_path / condition.condition_id), options=options())
        assert timeless(alone) == timeless(first)
        assert record.data is not None
        assert record.data.clean_images == 0


def test_a_repaired_model_is_asked_and_kept(tmp_path: Path) -> None:
    """At the end of the trial or later, by the same detector as the poisoned one and with another answer."""
    detectors = (
        DETECTORS.build("spectral_signatures"),
        DETECTORS.build({"name": "spectral_signatures", "of": "repaired"}),
    )
    content = {**SMALL, "repair": "fine_pruning"}
    condition, plain = Condition.parse(content), Condition.parse({**SMALL, "repair": "none"})
    at_once, later = (Storage.open(tmp_path / name).child("sweep") for name in ("a", "b"))
    first = run_trial(condition, sweep=at_once, options=options(Questions(detectors)))
    assert [answer.result for answer in first.answers] == ["poisoned", "repaired"]
    assert first.answers[0].auroc != first.answers[1].auroc
    place = f"conditions/{first.condition_id}"
    assert at_once.child(place, "answers").list() == [f"{first.answers[1].key}.json"]
    names = set(result_table([first]))
    assert {"poisoned_spectral_signatures_auroc", "repaired_spectral_signatures_auroc"} <= names
    # Whether so small a model collapses is not the question here; one that did stands in no table.
    sound = TrialRecord.model_validate_json(first.model_dump_json().replace('"collapsed":true', '"collapsed":false'))
    table = detector_table([sound.model_copy(update={"answers": first.answers})])
    assert table is not None
    assert list(table.rows) == ["spectral_signatures", "spectral_signatures, repaired"]

    silent = run_trial(condition, sweep=later, options=replace(options(Questions()), keep_models=True))
    assert at_once.read_bytes(f"{place}/model.safetensors") == later.read_bytes(f"{place}/model.safetensors")
    found = ask_trial(condition, silent, sweep=later, options=options(Questions(detectors)))
    assert [(each.key, each.auroc) for each in found.answers] == [(each.key, each.auroc) for each in first.answers]
    assert run_trial(plain, options=options(Questions(detectors[1:]))).answers == ()


def test_a_model_that_is_gone_is_not_trained_again(tmp_path: Path) -> None:
    sweep = Storage.open(tmp_path / "sweep")
    record = trial(sweep, Questions())
    sweep.delete(f"stages/{record.stages[0].fingerprint}/{MANIFEST}")
    with pytest.raises(StageGoneError, match=record.condition_id):
        ask_trial(Condition.parse(SMALL), record, sweep=sweep, options=options())


def test_a_detector_that_fails_costs_no_training(tmp_path: Path) -> None:
    record = trial(Storage.open(tmp_path / "sweep"), Questions((_Fails(), *QUICK.detect[:1])))
    assert record.status == "finished"
    assert [answer.error for answer in record.answers] == ["ValueError: no idea", None]
    assert record.answers[1].auroc is not None


def test_a_fine_pruned_model_says_the_same_later_and_a_failed_question_can_be_asked_again(tmp_path: Path) -> None:
    """Found: its head could not be copied before a forward pass, and no detector of repaired models was asked again."""
    condition = Condition.parse({**SMALL, "repair": "fine_pruning"})
    detectors = (DETECTORS.build({"name": "ibd_psc", "of": "repaired"}), _Fails(of="repaired"))
    at_once, later = (Storage.open(tmp_path / name).child("sweep") for name in ("a", "b"))
    first = run_trial(condition, sweep=at_once, options=options(Questions(detectors)))
    silent = run_trial(condition, sweep=later, options=replace(options(Questions()), keep_models=True))
    found = ask_trial(condition, silent, sweep=later, options=options(Questions(detectors)))
    assert [(each.error, each.auroc) for each in found.answers] == [(each.error, each.auroc) for each in first.answers]
    assert [each.error for each in found.answers] == [None, "ValueError: no idea"]
    asked = partial(split_unasked_repaired, later, Questions(detectors), (), [condition], [])
    assert (asked(), asked(again=True)) == (([], []), ([condition], []))


def test_a_detector_of_ones_own_may_not_draw_from_the_global_generator() -> None:
    experiment = Experiment.prepare(Condition.parse(SMALL), torch.device("cpu"))
    (answer,) = Asking(experiment, [_Draws()], None, Reporter()).ask(experiment.build_model())
    assert answer.error is not None
    assert answer.error.startswith("GlobalRandomnessError: ")
    assert "the global random generator of torch" in answer.error


def test_a_baseline_gets_floors_and_answers_that_are_added_together(tmp_path: Path) -> None:
    poisoned, sweep = Condition.parse(SMALL), Storage.open(tmp_path / "sweep")
    baseline, probes = poisoned.baseline(), probes_of([poisoned])
    before = run_trial(baseline, sweep=sweep, options=options(Questions()))
    assert lacks_tests(before, probes)
    later = run_trial(baseline, sweep=sweep, options=replace(options(), probes=probes))
    assert not lacks_tests(later, probes)
    assert [answer.error for answer in later.answers] == [None, None]
    assert (later.stages, later.finished_ms) == (before.stages, before.finished_ms)
    assert ConditionFolder(sweep, before.condition_id).answers() == later.answers


def test_clean_label_pictures_are_shown_as_they_were_trained_on(tmp_path: Path) -> None:
    """Perturbed by a surrogate, which is kept too: asked later, the picture is the same."""
    content = {**SMALL, "poison": {"strategy": "clean_label", "rate": 0.05, "target": 3}}
    sweep, condition = Storage.open(tmp_path / "sweep"), Condition.parse(content)
    at_once = run_trial(condition, sweep=sweep, options=options(Questions(QUICK.detect[:1])))
    for name in sweep.child("stages", condition.poison_fingerprint, "answers").list():
        sweep.delete(f"stages/{condition.poison_fingerprint}/answers/{name}")
    later = ask_trial(condition, at_once, sweep=sweep, options=options(Questions(QUICK.detect[:1])))
    assert later.answers[0].auroc == at_once.answers[0].auroc is not None
    assert np.isfinite(later.answers[0].seconds)
