"""What a watcher knows when the storage is away for a moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up import record, stage

from bdray.cluster.job import Task
from bdray.condition import Condition
from bdray.detectors import DETECTORS
from bdray.errors import StorageError
from bdray.questions import Questions, answer_key
from bdray.record import EpochRecord, now_ms
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import answer_name
from bdray.store.journal import Journal
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.display import running_line
from bdray.sweeping.forecast import Capacity
from bdray.sweeping.watching import Watcher
from bdray.sweeping.workload import work_of


def write_record(sweep: Storage, condition: Condition) -> None:
    stages = (
        stage(
            EpochRecord(epoch=part.epochs, images=10, seconds=1.0, stage_seconds=1.0, finished_ms=now_ms()),
            name=part.name,
            fingerprint=part.fingerprint,
        )
        for part in work_of(condition).stages
    )
    made = record(condition, *stages, started_ms=now_ms() - 60_000, finished_ms=now_ms())
    ConditionFolder(sweep, condition.condition_id).write_record(made)


@pytest.mark.parametrize("when", ["before this run", "in this run"])
def test_what_ended_while_the_storage_was_away_is_learnt_when_it_is_back(when: str, tmp_path: Path) -> None:
    condition = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch"})
    sweep = Storage.open(tmp_path)
    SweepFolder(sweep).write_info(SweepInfo("one", "one"))
    away = tmp_path / "conditions" / condition.condition_id / "record.json"
    # Whoever reads a file that is a folder is told so by the system.
    away.mkdir(parents=True)
    watcher = Watcher(sweep, [condition], [], lambda: Capacity(1.0))
    if when == "in this run":
        watcher._before = []
        watcher.started(condition.condition_id)
        watcher.ended(condition.condition_id)
    with pytest.raises(StorageError):
        watcher.look()
    assert watcher.timed == 0
    away.rmdir()
    write_record(sweep, condition)
    watcher.look()
    assert watcher.timed == 1


def test_the_time_left_follows_the_nodes_that_are_there(tmp_path: Path) -> None:
    """An autoscaler adds them while trials wait."""
    conditions = [
        Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch", "seed": seed}) for seed in range(8)
    ]
    sweep, cpus = Storage.open(tmp_path), [1.0]
    SweepFolder(sweep).write_info(SweepInfo("grows", "grows"))
    write_record(sweep, conditions[0])
    tasks = [Task(one.condition_id, "", ()) for one in conditions[1:]]
    watcher = Watcher(sweep, conditions, tasks, lambda: Capacity(cpus[0]))
    watcher.look()
    alone = watcher.forecaster.spent(tasks).wall_s
    cpus[0] = 7.0
    watcher.look()
    assert watcher.forecaster.spent(tasks).wall_s == pytest.approx(alone / 7)


def test_what_follows_a_stages_last_epoch_is_said(tmp_path: Path) -> None:
    """Found: "poison, epoch 8 of 8 done" for the minutes that a detector took."""
    repair = {"name": "fine_pruning"}
    condition = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch", "repair": repair})
    assert [stage.name for stage in condition.stages] == ["poison", "prune", "finetune"]
    sweep, name = Storage.open(tmp_path), condition.condition_id
    strip, late = DETECTORS.build("strip"), DETECTORS.build("scale_up")
    questions = Questions((strip, late, DETECTORS.build({"name": "mm_bd", "of": "repaired"})))
    watcher = Watcher(
        sweep, [condition], [Task(name, "", (), label="mine")], lambda: Capacity(1.0), questions=questions
    )
    watcher.started(name)
    journal = Journal(SweepFolder(sweep).condition(name))

    def said(stage: str, epoch: int) -> str:
        done = EpochRecord(epoch=epoch, images=10, seconds=1.0, stage_seconds=1.0, finished_ms=now_ms())
        journal.add(stage, stage, [done])
        watcher.look()
        watcher.look()
        (running,) = watcher.sweep_status(total=1).running
        return running_line(running)

    epochs, tuned = condition.train.epochs, condition.finetune.epochs
    assert said("poison", epochs - 1).startswith(f"mine: poison, epoch {epochs - 1} of {epochs} done, ")
    over = f"mine: poison, epoch {epochs} of {epochs} done; "
    assert said("poison", epochs) == f"{over}now strip, then scale_up, then prune, then finetune"
    # Found: what had been answered long ago, for other conditions too, was still said to come.
    for detector, rest in ((strip, "now scale_up, then prune, then finetune"), (late, "now prune, then finetune")):
        place = answer_name(condition.poison_fingerprint, answer_key(detector, condition))
        sweep.write_atomic(f"stages/{place}.json", "{}")
        watcher.look()
        (running,) = watcher.sweep_status(total=1).running
        assert running_line(running) == over + rest
    assert said("finetune", tuned) == f"mine: finetune, epoch {tuned} of {tuned} done; now mm_bd"
