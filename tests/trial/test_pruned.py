"""A poison stage that a reporter ends early: its record, who shares it, and going on after all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bdray.condition import Condition
from bdray.record import EpochRecord, StageName, TrialRecord
from bdray.results.listing import listing_of
from bdray.results.tables import result_row
from bdray.store.records import read_record, statuses_of_intact
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 100, "test_limit": 50},
    "model": "resnet8",
    "trigger": "patch",
    "train": {"epochs": 4, "batch_size": 32, "precision": "float32"},
    "finetune": {"epochs": 2, "batch_size": 32, "fraction": 0.1},
}


class Ends(Reporter):
    """Ends every poison stage after so many epochs; counts what is trained and what is asked."""

    def __init__(self, after: int) -> None:
        self.after, self.trained, self.asked = after, list[tuple[StageName, int]](), list[int]()

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        self.trained.append((stage, record.epoch))

    def prunes(self, condition: Condition, epochs: Sequence[EpochRecord]) -> bool:
        assert not condition.is_baseline
        self.asked.append(len(epochs))
        return len(epochs) >= self.after


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrialOptions:
    return TrialOptions(device="cpu", threads=1, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def sweep(tmp_path: Path) -> Storage:
    sweep = Storage.open(tmp_path / "runs").child("one")
    SweepFolder(sweep).write_info(SweepInfo(sweep.name, sweep.name))
    return sweep


def curve(record: TrialRecord) -> list[tuple[int, float | None]]:
    return [(epoch.epoch, epoch.loss) for stage in record.stages for epoch in stage.epochs]


def test_it_leaves_a_record_without_results(sweep: Storage, options: TrialOptions) -> None:
    condition, reporter = Condition.parse(SMALL), Ends(2)
    record = run_trial(condition, sweep=sweep, reporter=reporter, options=options)
    assert reporter.trained == [("poison", 1), ("poison", 2)]
    assert reporter.asked == [0, 1, 2]
    assert (record.status, record.poisoned, record.repaired, record.collapsed) == ("pruned", None, None, False)
    assert [(stage.name, len(stage.epochs)) for stage in record.stages] == [("poison", 2)]
    assert record == read_record(sweep, condition.condition_id)
    assert statuses_of_intact(sweep, [condition]) == {condition.condition_id: "pruned"}
    row = result_row(record)
    assert [value for name, value in row.items() if name.endswith(("accuracy", "success_rate"))] == [None] * 6
    assert [row[""] for row in listing_of([record]).rows] == ["pruned"]


def test_who_shares_the_stage_trains_nothing_and_who_goes_on_gets_the_same_bits(
    sweep: Storage, options: TrialOptions
) -> None:
    condition = Condition.parse(SMALL)
    undisturbed = run_trial(condition, options=options)
    run_trial(condition, sweep=sweep, reporter=Ends(2), options=options)
    sharing, reporter = Condition.parse({**SMALL, "finetune": {**SMALL["finetune"], "lr": 0.5}}), Ends(2)
    record = run_trial(sharing, sweep=sweep, reporter=reporter, options=options)
    assert (record.status, reporter.trained, reporter.asked) == ("pruned", [], [2])
    spared = Ends(99)
    record = run_trial(condition, sweep=sweep, reporter=spared, options=options)
    assert record.status == "finished"
    assert spared.trained[:2] == [("poison", 3), ("poison", 4)]
    assert curve(record) == curve(undisturbed)
    assert not sweep.child("stages", condition.poison_fingerprint).exists("checkpoint.pt")


def test_what_came_to_its_end_stands_and_no_repair_or_baseline_is_asked_about(
    sweep: Storage, options: TrialOptions
) -> None:
    condition, reporter = Condition.parse(SMALL), Ends(4)
    assert run_trial(condition, sweep=sweep, reporter=reporter, options=options).status == "finished"
    assert reporter.asked == [0, 1, 2, 3, 4]
    assert run_trial(condition.baseline(), sweep=sweep, reporter=Ends(0), options=options).status == "finished"
