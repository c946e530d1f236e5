"""A condition on a disk that fills up, at any moment: named with file and cause, and finished once there is room."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import fill
from made_up import record, stage

from bdray.condition import Condition
from bdray.errors import StorageError
from bdray.record import EpochRecord, TrialRecord
from bdray.store.condition_folder import ConditionFolder
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.trial import TrialOptions, run_trial

CONDITION = Condition.parse(
    {
        "data": {"name": "digits", "image_size": 8, "train_limit": 60, "test_limit": 20},
        "model": "resnet8",
        "trigger": "pixel",
        "train": {"epochs": 1, "batch_size": 32, "precision": "float32"},
        "finetune": {"epochs": 1, "batch_size": 32, "fraction": 0.1, "precision": "float32"},
    }
)


def run(sweep: Storage) -> TrialRecord:
    return run_trial(CONDITION, sweep=sweep, options=TrialOptions(device="cpu", threads=1))


def measured(record: TrialRecord) -> list[object]:
    return [epoch.rates for stage in record.stages for epoch in stage.epochs]


def unfinished(disk: Path) -> list[str]:
    return [path.name for path in disk.rglob("*") if path.name.endswith(".tmp")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], int]:
    """What it measures, and the KiB that it leaves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    numbers = measured(run(Storage.open(folder)))
    return numbers, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_disk_that_fills_costs_no_number(
    share: float, small_disk: Callable[[int], Path], undisturbed: tuple[list[object], int]
) -> None:
    """Full from the start, at the first files, in a checkpoint or a model, at the last files."""
    disk, (numbers, kib) = small_disk(16_384), undisturbed
    sweep, filler = Storage.open(disk / "runs"), fill(disk, int(share * kib))
    with pytest.raises(StorageError, match=r"cannot write \S*/disk/runs/\S*: the disk is full"):
        run(sweep)
    assert unfinished(disk) == []
    assert read_record(sweep, CONDITION.condition_id) is None
    filler.unlink()
    record = run(sweep)
    assert (record.status, measured(record)) == ("finished", numbers)


def test_a_record_is_there_as_a_whole_or_not_at_all(small_disk: Callable[[int], Path]) -> None:
    """The disk fills in the middle of it."""
    disk = small_disk(1024)
    sweep, filler = Storage.open(disk), fill(disk, 40)
    epochs = (
        EpochRecord(epoch=number, images=60, seconds=1.0, stage_seconds=float(number), finished_ms=number)
        for number in range(1, 1001)
    )
    made = record(CONDITION, stage(*epochs, fingerprint="0" * 12))
    folder = ConditionFolder(sweep, CONDITION.condition_id)
    folder.write_condition(CONDITION)
    with pytest.raises(StorageError, match=r"cannot write \S*/record\.json: the disk is full"):
        folder.write_record(made)
    assert (unfinished(disk), read_record(sweep, CONDITION.condition_id)) == ([], None)
    assert os.listdir(folder.storage.uri) == ["condition.json"]  # noqa: PTH208 - hidden names too
    filler.unlink()
    folder.write_record(made)
    assert read_record(sweep, CONDITION.condition_id) == made
