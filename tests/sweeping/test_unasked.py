"""Which conditions a detector that was added later is asked about."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest

from bdray.attacks import probes_of
from bdray.cli import main
from bdray.condition import Condition
from bdray.detectors import DETECTORS
from bdray.questions import Questions
from bdray.recipes import Evaluate
from bdray.store.file_names import MANIFEST, MODEL
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.reuse import say_gone, split_unasked
from bdray.terminal import Console
from bdray.trial import TrialOptions, run_trial

BASE: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 64, "test_limit": 40},
    "model": "resnet8",
    "trigger": "patch",
    "train": {"epochs": 1, "batch_size": 32},
    "finetune": {"epochs": 1, "batch_size": 32, "fraction": 0.2},
}
SPECTRAL, CLUSTERS = (DETECTORS.build(name) for name in ("spectral_signatures", "activation_clustering"))


@pytest.fixture
def ran(tmp_path: Path) -> tuple[Storage, list[Condition]]:
    """Two repairs of one model and a condition that was never run; the first question has been asked."""
    storage = Storage.open(tmp_path)
    other = Condition.parse({**BASE, "finetune": {**BASE["finetune"], "epochs": 2}})
    conditions = [Condition.parse(BASE), other, Condition.parse({**BASE, "seed": 1})]
    options = TrialOptions(device="cpu", cache=tmp_path / "cache", questions=Questions((SPECTRAL,)))
    for condition in conditions[:2]:
        run_trial(condition, sweep=storage.child("sweep"), storage=storage, options=options)
    return storage, conditions


def test_only_what_lacks_an_answer_is_asked(ran: tuple[Storage, list[Condition]]) -> None:
    storage, conditions = ran
    sweep, left = storage.child("sweep"), conditions[2:]
    assert split_unasked(sweep, storage, (), conditions, left) == ([], [])
    assert split_unasked(sweep, storage, (SPECTRAL,), conditions, left) == ([], [])
    assert split_unasked(sweep, storage, (SPECTRAL, CLUSTERS), conditions, left) == (conditions[:2], [])


def test_a_model_that_is_gone_is_named_once(ran: tuple[Storage, list[Condition]]) -> None:
    storage, conditions = ran
    sweep = storage.child("sweep")
    sweep.delete(f"stages/{conditions[0].poison_fingerprint}/{MANIFEST}")
    able, gone = split_unasked(sweep, storage, (CLUSTERS,), conditions, conditions[2:])
    assert able == []
    assert [condition.poison_fingerprint for condition in gone] == [conditions[0].poison_fingerprint]


def test_a_model_that_is_gone_is_trained_again_as_printed(
    ran: tuple[Storage, list[Condition]], capsys: pytest.CaptureFixture[str]
) -> None:
    storage, conditions = ran
    sweep, fingerprint = storage.child("sweep"), conditions[0].poison_fingerprint
    sweep.delete(f"stages/{fingerprint}/{MANIFEST}")
    say_gone(Console(), sweep, conditions[:1], "no detector can be asked")
    command = shlex.split(capsys.readouterr().out.partition("this trains it again: ")[2])
    assert main(command[1:]) == 0
    assert SweepFolder(sweep).has_stage(fingerprint)
    assert split_unasked(sweep, storage, (CLUSTERS,), conditions, conditions[2:]) == (conditions[:2], [])


@pytest.mark.parametrize(
    ("count", "others"), [(1, "asked;"), (2, "asked, nor can 1 other;"), (3, "asked, nor can 2 others;")]
)
def test_of_many_models_that_are_gone_one_is_named(count: int, others: str, tmp_path: Path) -> None:
    """Found: of a single one, "nor can 0 others"."""
    said = io.StringIO()
    gone = [Condition.parse({**BASE, "seed": seed}) for seed in range(count)]
    say_gone(Console(file=said), Storage.open(tmp_path), gone, "it cannot be asked", most=1)
    (line,) = said.getvalue().splitlines()
    assert f"it cannot be {others} this trains it again: bdray trial" in line


def test_a_model_that_another_sweep_keeps_is_asked(ran: tuple[Storage, list[Condition]]) -> None:
    storage, conditions = ran
    sweep, place = storage.child("sweep"), f"stages/{conditions[0].poison_fingerprint}"
    other = storage.child("other")
    other.write_atomic("space.yaml", "")
    other.child(place).copy_in(sweep.child(place), MANIFEST, MANIFEST)
    sweep.delete(f"{place}/{MANIFEST}")
    assert split_unasked(sweep, storage, (CLUSTERS,), conditions, conditions[2:]) == (conditions[:2], [])


@pytest.mark.parametrize("poisoned", [True, False])
def test_the_printed_command_keeps_the_record_and_brings_the_models_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, poisoned: bool
) -> None:
    """With the precision and the threads that the record says, and so the same bits."""
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    one = Condition.parse(BASE)
    condition, attacks = (one if poisoned else one.baseline()), probes_of([one], varied=True)
    sweep = Storage.open(tmp_path / "sweep")
    questions = Questions((SPECTRAL,), evaluate=Evaluate(probes=True))
    options = TrialOptions("cpu", 1, "bfloat16", probes=attacks, questions=questions)
    run_trial(condition, sweep=sweep, options=options)
    folder = SweepFolder(sweep).condition(condition.condition_id)
    before, place = folder.record(), f"stages/{condition.poison_fingerprint}"
    assert before is not None and len(before.record.floors or before.record.probes) > 1
    weights, answers = sweep.read_bytes(f"{place}/{MODEL}"), folder.answered()
    sweep.delete_folder(place)
    say_gone(Console(), sweep, [condition], "no detector can be asked")
    command = shlex.split(capsys.readouterr().out.partition("this trains it again: ")[2])
    assert main([*command[1:], "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "its record stays" in said.out and "1 threads, bfloat16" in said.out
    assert "another one" not in said.err
    after = folder.record()
    assert after is not None and after.record == before.record
    assert folder.answered() == answers
    assert sweep.read_bytes(f"{place}/{MODEL}") == weights
    # The next run of the sweep finds nothing damaged, and the model of the repair.
    assert SweepFolder(sweep).condition(condition.condition_id).mended(condition) is not None
    assert MODEL in after.files


def test_a_model_that_comes_back_as_another_one_is_said(
    ran: tuple[Storage, list[Condition]], caplog: pytest.LogCaptureFixture
) -> None:
    storage, (condition, *_) = ran
    sweep, folder = storage.child("sweep"), SweepFolder(storage.child("sweep")).condition(ran[1][0].condition_id)
    kept = folder.record()
    assert kept is not None
    stage = kept.record.stages[0]
    rates = stage.epochs.end
    assert rates is not None
    other = stage.epochs[-1].model_copy(update={"rates": rates.model_copy(update={"clean_accuracy": 0.875})})
    changed = stage.model_copy(update={"epochs": (*stage.epochs[:-1], other)})
    folder.write_record(kept.record.model_copy(update={"stages": (changed, *kept.record.stages[1:])}), kept.files)
    place = sweep.uri_of(f"conditions/{condition.condition_id}/condition.json")
    assert main(["trial", place, "--output", sweep.uri, "--device", "cpu"]) == 0
    (line,) = [line for line in caplog.messages if "another one" in line]
    assert condition.condition_id in line and "was 0.875" in line and "its record stays" in line
    after = read_record(sweep, condition.condition_id)
    assert after is not None and after.stages[0] == changed


def test_what_a_sweep_has_decided_holds_for_its_conditions_that_are_run_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    sweep, condition = Storage.open(tmp_path / "sweep"), Condition.parse(BASE)
    SweepFolder(sweep).write_info(SweepInfo("sweep", "sweep", decided={"precision": "bfloat16", "cpu": 1}))
    SweepFolder(sweep).condition(condition.condition_id).write_condition(condition)
    place = sweep.uri_of(f"conditions/{condition.condition_id}/condition.json")
    assert main(["trial", place, "--output", sweep.uri, "--device", "cpu"]) == 0
    record = read_record(sweep, condition.condition_id)
    assert record is not None
    assert [(s.environment["precision"], s.environment["threads"]) for s in record.stages] == [("bfloat16", 1)] * 2
