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
from bdray.record import Answer, EpochRecord, now_ms
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import answer_name
from bdray.store.journal import Journal
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.store.sweep_status import RunningCondition
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


def test_slots_that_stay_empty_are_no_gaps(tmp_path: Path) -> None:
    """Found: once fewer trials fitted than before, a start was taken for that of a slot that had been free for long."""
    conditions = [
        Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch", "seed": seed}) for seed in range(12)
    ]
    sweep, now = Storage.open(tmp_path), [0.0]
    SweepFolder(sweep).write_info(SweepInfo("narrows", "narrows"))
    write_record(sweep, conditions[-1])
    names = [condition.condition_id for condition in conditions[:-1]]
    tasks = [Task(name, "", ()) for name in names]
    watcher = Watcher(sweep, conditions, tasks, lambda: Capacity(1.0), clock=lambda: now[0])
    watcher.look()
    alone = watcher.left_s()
    assert alone is not None
    for name in names[:4]:
        watcher.started(name)
    for name in names[:4]:
        watcher.ended(name)
    # Each of the others needs the whole machine.
    for name in names[4:-1]:
        now[0] += 0.1
        watcher.started(name)
        now[0] += 60
        watcher.ended(name)
    assert watcher.left_s() == pytest.approx(alone / len(names) + 0.1)


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
        (running,) = watcher.sweep_status(None).running
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
        (running,) = watcher.sweep_status(None).running
        assert running_line(running) == over + rest
    assert said("finetune", tuned) == f"mine: finetune, epoch {tuned} of {tuned} done; now mm_bd"


def test_a_surrogate_is_followed_like_any_stage(tmp_path: Path) -> None:
    """In time that stands still."""
    poison = {"strategy": "clean_label", "perturbation": "pgd", "surrogate": {"training": "adversarial"}}
    condition = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch", "poison": poison})
    sweep, name, questions = Storage.open(tmp_path), condition.condition_id, Questions((DETECTORS.build("strip"),))
    SweepFolder(sweep).write_info(SweepInfo("follows", "follows", detect=tuple(questions.asked)))
    watcher = Watcher(
        sweep, [condition], [Task(name, "", ())], lambda: Capacity(1.0), questions=questions, clock=lambda: 0.0
    )
    watcher.started(name)
    journal = Journal(SweepFolder(sweep).condition(name))

    def running_after(stage: str, epoch: int) -> RunningCondition:
        done = EpochRecord(epoch=epoch, images=10, seconds=1.0, stage_seconds=1.0 * epoch, finished_ms=now_ms())
        journal.add(stage, stage, [done])
        watcher.look()
        (running,) = watcher.sweep_status(None).running
        return running

    epochs = condition.train.epochs
    half = running_after("surrogate", epochs // 2)
    assert (half.stage, half.epoch, half.epochs, half.then) == ("surrogate", epochs // 2, epochs, ())
    assert running_after("surrogate", epochs).then == ("poison",)
    assert running_after("poison", epochs).then == ("strip", "finetune")


def test_what_detectors_still_take_counts_until_they_have_answered(tmp_path: Path) -> None:
    """In time that stands still: 40 s of poisoning, 20 s of fine-tuning, 5 s beside, and 100 s of two detectors."""
    content = {"data": "digits", "model": "resnet8", "trigger": "patch"}
    before, condition = (Condition.parse({**content, "seed": seed}) for seed in (0, 1))
    sweep, name = Storage.open(tmp_path), condition.condition_id
    detectors = DETECTORS.build("strip"), DETECTORS.build("scale_up")
    SweepFolder(sweep).write_info(SweepInfo("asks", "asks", detect=tuple(Questions(detectors).asked)))
    took, tuning = {"poison": 40.0, "finetune": 20.0}, condition.finetune.epochs

    def done(name: str, epoch: int, seconds: float) -> EpochRecord:
        return EpochRecord(epoch=epoch, images=10, seconds=1.0, stage_seconds=seconds, finished_ms=0)

    stages = [
        stage(done(part.name, part.epochs, took[part.name]), name=part.name, fingerprint=part.fingerprint)
        for part in work_of(before).stages
    ]
    answers = tuple(
        Answer(key=answer_key(each, before), detector={}, result="poisoned", seconds=50.0) for each in detectors
    )
    folder = ConditionFolder(sweep, before.condition_id)
    folder.write_record(record(before, *stages, started_ms=0, finished_ms=165_000))
    folder.write_answers(answers)
    watcher = Watcher(
        sweep,
        [before, condition],
        [Task(name, "", ())],
        lambda: Capacity(1.0),
        questions=Questions(detectors),
        clock=lambda: 0.0,
        wall_ms=lambda: 0,
    )
    journal = Journal(SweepFolder(sweep).condition(name))
    watcher.look()
    assert watcher.left_s() == pytest.approx(165)
    watcher.started(name)
    assert watcher.left_s() == pytest.approx(165)
    half = condition.train.epochs // 2
    for stage_name, epoch, seconds, left in (
        ("poison", half, 20.0, 40 * (1 - half / condition.train.epochs) + 20 + 100),
        ("poison", condition.train.epochs, 40.0, 20 + 100),
        ("finetune", tuning, 20.0, 0),
    ):
        journal.add(stage_name, stage_name, [done(stage_name, epoch, seconds)])
        watcher.look()
        watcher.look()
        assert watcher.left_s() == pytest.approx(left, abs=0.5)
        if left == 120:
            place = answer_name(condition.poison_fingerprint, answer_key(detectors[0], condition))
            sweep.write_atomic(f"stages/{place}.json", "{}")
            watcher.look()
            assert watcher.left_s() == pytest.approx(20 + 50)


def test_nothing_is_said_of_detectors_before_a_condition_has_ended(tmp_path: Path) -> None:
    """Found: "about 1 s left" of four minutes, since only epochs had been timed."""
    condition = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch"})
    for questions in (Questions(), Questions((DETECTORS.build("strip"),))):
        sweep = Storage.open(tmp_path / str(len(questions.detect)))
        SweepFolder(sweep).write_info(SweepInfo("asks", "asks", detect=tuple(questions.asked)))
        tasks = [Task(condition.condition_id, "", ())]
        watcher = Watcher(sweep, [condition], tasks, lambda: Capacity(1.0), questions=questions)
        watcher.started(condition.condition_id)
        journal = Journal(SweepFolder(sweep).condition(condition.condition_id))
        journal.add("poison", "poison", [EpochRecord(epoch=1, images=9, seconds=1.0, stage_seconds=1.0, finished_ms=1)])
        watcher.look()
        assert (watcher.left_s() is None) is bool(questions.detect)


def test_conditions_that_are_only_asked_take_what_asking_took(tmp_path: Path) -> None:
    """Found: a detector that was added to finished conditions was said to take as long as training them again."""
    sweep, detector = Storage.open(tmp_path / "asks"), DETECTORS.build("strip")
    questions = Questions((detector,))
    conditions = [
        Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch", "seed": seed}) for seed in range(4)
    ]
    SweepFolder(sweep).write_info(SweepInfo("asks", "asks", detect=tuple(questions.asked)))
    for condition in conditions:
        stages = [
            stage(
                EpochRecord(epoch=part.epochs, images=10, seconds=1.0, stage_seconds=600.0, finished_ms=0),
                name=part.name,
                fingerprint=part.fingerprint,
            )
            for part in work_of(condition).stages
        ]
        folder = ConditionFolder(sweep, condition.condition_id)
        folder.write_record(record(condition, *stages, started_ms=0, finished_ms=1_300_000))
    now, tasks = [0.0], [Task(condition.condition_id, "", ()) for condition in conditions]
    watcher = Watcher(sweep, conditions, tasks, lambda: Capacity(1.0), questions=questions, clock=lambda: now[0])
    for left, condition in zip((60.0, 40.0, 20.0), conditions, strict=False):
        watcher.look()
        watcher.started(condition.condition_id)
        now[0] += 20
        watcher.ended(condition.condition_id)
        watcher.look()
        assert watcher.left_s() == pytest.approx(left, abs=0.5)
    watcher.started(conditions[-1].condition_id)
    now[0] += 15
    assert watcher.left_s() == pytest.approx(5, abs=0.5)
    tested_again = Watcher(
        sweep, conditions, tasks, lambda: Capacity(1.0), questions=questions, retested=[tasks[0].condition_id]
    )
    assert tested_again.forecaster.only_asked == {task.condition_id for task in tasks[1:]}
