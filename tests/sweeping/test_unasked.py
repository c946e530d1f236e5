"""Which conditions a detector that was added later is asked about."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from bdray.cli import main
from bdray.condition import Condition
from bdray.detectors import DETECTORS
from bdray.questions import Questions
from bdray.store.file_names import MANIFEST
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
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


def test_a_model_that_another_sweep_keeps_is_asked(ran: tuple[Storage, list[Condition]]) -> None:
    storage, conditions = ran
    sweep, place = storage.child("sweep"), f"stages/{conditions[0].poison_fingerprint}"
    other = storage.child("other")
    other.write_atomic("space.yaml", "")
    other.child(place).copy_in(sweep.child(place), MANIFEST, MANIFEST)
    sweep.delete(f"{place}/{MANIFEST}")
    assert split_unasked(sweep, storage, (CLUSTERS,), conditions, conditions[2:]) == (conditions[:2], [])
