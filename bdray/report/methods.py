"""What a paper's section on methods asks of a sweep: pictures, sizes of networks, recipes, time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bdray.condition import flatten
from bdray.record import DataRecord, StageRecord, TrialRecord
from bdray.values import show_cell, show_duration


def methods(records: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    """Facts about how `records` were made, as name and text; "" where nothing is known. What varies is said to."""
    return [
        ("pictures", _each(records, lambda record: _pictures(record.data))),
        ("parameters", _each(records, _parameters)),
        ("poison stage", _recipe(records, "train")),
        ("fine-tuning", _recipe([record for record in records if record.stage("finetune")], "finetune")),
        ("time trained", _time(records)),
    ]


def _each(records: Sequence[TrialRecord], said: Callable[[TrialRecord], str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, map(said, records))))


def _pictures(data: DataRecord | None) -> str:
    if data is None:
        return ""
    poisoned = f" ({data.poisoned_images:,} poisoned)" if data.poisoned_images else ""
    clean = f", {data.clean_images:,} clean for the repair" if data.clean_images else ""
    return f"{data.train_images:,} training{poisoned}{clean}, {data.test_images:,} test"


def _parameters(record: TrialRecord) -> str:
    return "" if record.parameters is None else f"{record.condition['model']['name']} {record.parameters:,}"


def _recipe(records: Sequence[TrialRecord], section: str) -> str:
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for path, value in flatten(record.condition.get(section, {})).items():
            values.setdefault(path, {})[show_cell(value)] = None
    return ", ".join(f"{path} {next(iter(seen)) if len(seen) == 1 else 'varies'}" for path, seen in values.items())


def _time(records: Sequence[TrialRecord]) -> str:
    """Of every stage once, where it was computed."""
    stages: dict[str, StageRecord] = {stage.fingerprint: stage for record in records for stage in record.stages}
    seconds = [epoch.seconds for stage in stages.values() for epoch in stage.epochs]
    return f"{show_duration(sum(seconds))} in {len(stages)} stages, without evaluation" if any(seconds) else ""
