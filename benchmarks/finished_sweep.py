"""A sweep as if thousands of conditions had been trained: the records of two that were, in the name of each."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from bdray.attacks import probes_of
from bdray.cluster.job import ClusterJob, Task
from bdray.condition import Condition
from bdray.record import Rates, StageRecord, TrialRecord, now_ms
from bdray.space import SearchSpace, load_space
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import SPACE
from bdray.store.journal import Journal
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.trial import TrialOptions, run_trial

_WRITERS = 16
_TEMPLATES = "templates"

_YAML = """\
name: large
seeds: [SEEDS]
fixed:
  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 50}
  model: {name: resnet8}
  train: {epochs: 10, batch_size: 50}
  finetune: {epochs: 5, batch_size: 50, fraction: 0.1}
parameters:
  trigger.name: {values: [patch, blend, pixel, sinusoid]}
  poison.rate: {values: [RATES]}
  finetune.lr: {values: [LEARNING_RATES]}
"""


def large_space(folder: Path, *, rates: int, learning_rates: int, seeds: int) -> SearchSpace:
    """Four triggers x poison rates x learning rates x seeds."""
    values = {
        "SEEDS": range(seeds),
        "LEARNING_RATES": [round(0.001 * (1 + number), 3) for number in range(learning_rates)],
        "RATES": [round(0.01 * (1 + number), 2) for number in range(rates)],
    }
    text = _YAML
    for name, numbers in values.items():
        text = text.replace(f"[{name}]", str(list(numbers)))
    (file := folder / SPACE).write_text(text)
    return load_space(file)


def templates_of(conditions: Sequence[Condition]) -> dict[str, TrialRecord]:
    """The record of one condition of each role, trained here and now."""
    ones = {condition.role: condition for condition in reversed(conditions)}
    options = TrialOptions(probes=probes_of(conditions), threads=1)
    return {role: run_trial(condition, options=options) for role, condition in ones.items()}


def write_finished(
    sweep: Storage, space: SearchSpace, conditions: Sequence[Condition], templates: dict[str, TrialRecord]
) -> None:
    """The sweep's own files, and every condition's `record.json`: all that its readers read."""
    ids = tuple(condition.condition_id for condition in conditions)
    sweep.write_atomic(SPACE, space.to_yaml())
    SweepFolder(sweep).write_info(SweepInfo(sweep.name, sweep.name, created_ms=now_ms(), conditions=ids))

    def write(condition: Condition) -> None:
        folder = ConditionFolder(sweep, condition.condition_id)
        folder.write_record(in_the_name_of(condition, templates[condition.role]))

    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(write, conditions))


def upload(near: Storage, far: Storage) -> None:
    """A sweep as it lies on a disk, its gathered records too."""
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(lambda file: far.copy_in(near, file.path, file.path), near.files()))


def write_templates(storage: Storage, templates: dict[str, TrialRecord]) -> None:
    """For `leave_record`, in the folder of all sweeps."""
    for role, record in templates.items():
        storage.write_atomic(f"{_TEMPLATES}/{role}.json", record.model_dump_json())


def leave_record(job: ClusterJob, task: Task) -> str:
    """For `ClusterJob.work`: nothing is trained, but what a trained condition leaves is there, in its name."""
    condition = Condition.parse(json.loads(task.content))
    record = in_the_name_of(condition, _template(job.storage, condition.role))
    folder = ConditionFolder(job.sweep, condition.condition_id)
    folder.write_condition(condition)
    journal = Journal(folder)
    for stage in record.stages:
        journal.add(stage.name, stage.result, stage.epochs)
    journal.flush()
    folder.write_record(record)
    return record.status


@lru_cache(maxsize=4)
def _template(storage: Storage, role: str) -> TrialRecord:
    return TrialRecord.model_validate_json(storage.read_bytes(f"{_TEMPLATES}/{role}.json"))


def in_the_name_of(condition: Condition, template: TrialRecord) -> TrialRecord:
    chance = random.Random(condition.condition_id)
    return template.model_copy(
        update={
            "condition_id": condition.condition_id,
            "cell_id": condition.cell_id,
            "condition": condition.content(),
            "stages": tuple(_varied(stage, chance) for stage in template.stages),
        }
    )


def _varied(stage: StageRecord, chance: random.Random) -> StageRecord:
    """With other rates, as every training has its own."""

    def vary(rates: Rates | None) -> Rates | None:
        drawn = {"clean_accuracy": chance.betavariate(90, 10), "attack_success_rate": chance.betavariate(8, 2)}
        return rates and rates.model_copy(update={**drawn, "collapsed": False, "largest_share": 0.2})

    epochs = tuple(epoch.model_copy(update={"rates": vary(epoch.rates)}) for epoch in stage.epochs)
    return stage.model_copy(update={"epochs": epochs})
