"""What a sweep takes over from others of its storage, and what counts as done: results on the pictures there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from picture_folders import write_class_folders

from bdray.condition import Condition
from bdray.data.flowers import CLASSES
from bdray.record import TrialRecord
from bdray.store.condition_folder import ConditionFolder
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.reuse import adopt, left_of, of_other_pictures
from bdray.trial import TrialOptions, run_trial


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    return write_class_folders(tmp_path / "pictures", dict.fromkeys(CLASSES, 5))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "runs")


def measured(pictures: Path, sweep: Storage) -> tuple[Condition, TrialRecord]:
    """A condition of flowers, run in a sweep."""
    condition = Condition.parse(
        {
            "data": {"name": "flowers", "root": str(pictures), "image_size": 12},
            "model": "resnet8",
            "trigger": {"name": "patch", "size": 2},
            "poison": {"rate": 0.2},
            "train": {"epochs": 1, "batch_size": 8},
            "finetune": {"epochs": 0},
        }
    )
    SweepFolder(sweep).write_info(SweepInfo(sweep.name, sweep.name))
    return condition, run_trial(condition, sweep=sweep, options=TrialOptions(device="cpu", threads=1))


def replace_all(pictures: Path) -> None:
    """Other pictures under the same names, and more of them."""
    write_class_folders(pictures, {**dict.fromkeys(CLASSES, 6), "tulip": 7}, side=13)


def test_what_was_measured_on_other_pictures_is_not_taken_over(pictures: Path, storage: Storage) -> None:
    condition, record = measured(pictures, storage.child("old"))
    assert record.data is not None
    assert adopt(storage.child("first"), storage, [condition]) == [condition.condition_id]
    replace_all(pictures)
    assert condition.data.fingerprint() == condition.data.load().fingerprint != record.data.fingerprint
    new = storage.child("new")
    assert adopt(new, storage, [condition]) == []
    assert left_of(new, [condition], retry_failed=False) == [condition]


def test_pictures_that_are_not_here_are_those_of_the_record(pictures: Path, storage: Storage) -> None:
    condition, _ = measured(pictures, storage.child("old"))
    pictures.rename(pictures.with_name("elsewhere"))
    assert condition.data.fingerprint() is None
    assert adopt(storage.child("new"), storage, [condition]) == [condition.condition_id]
    assert list(of_other_pictures(storage.child("old"), [condition])) == []


def test_what_is_done_on_other_pictures_is_said(pictures: Path, storage: Storage) -> None:
    condition, record = measured(pictures, sweep := storage.child("sweep"))
    assert record.data is not None
    assert list(of_other_pictures(sweep, [condition])) == []
    replace_all(pictures)
    (said,) = of_other_pictures(sweep, [condition])
    now = str(condition.data.fingerprint())
    assert said.startswith(
        f"1 condition was measured on other pictures of flowers ({record.data.fingerprint[:8]}) than there are now "
        f"({now[:8]}), and counts as done"
    )
    assert ConditionFolder(sweep, condition.condition_id).record() is not None
