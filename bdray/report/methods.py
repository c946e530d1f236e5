"""What a paper's section on methods asks of a sweep: pictures, sizes of networks, recipes, time."""

from __future__ import annotations

from collections.abc import Sequence

from bdray.condition import flatten
from bdray.record import DataRecord, StageRecord, TrialRecord
from bdray.values import show_cell, show_duration


def methods(records: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    """Facts about how `records` were made, as name and text; "" where nothing is known. What varies is said to."""
    trained = [record for record in records if any(not stage.at_once for stage in record.stages[1:])]
    return [
        ("pictures", _pictures([record.data for record in records if record.data])),
        ("parameters", "; ".join(dict.fromkeys(filter(None, map(_parameters, records))))),
        ("poison stage", _recipe(records, "train")),
        ("repair", "" if tunes_only(records) else _recipe(records, "repair")),
        ("fine-tuning" if tunes_only(records) else "how it trains", _recipe(trained, "finetune")),
        ("time trained", _time(records)),
    ]


def tunes_only(records: Sequence[TrialRecord]) -> bool:
    """Whether plain fine-tuning is the only repair."""
    # Not `record.flat`, which is made anew for every record.
    return {record.condition.get("repair", {}).get("name", "finetune") for record in records} <= {"finetune", "none"}


def _pictures(found: Sequence[DataRecord]) -> str:
    poisoned: dict[tuple[int, int, int], list[int]] = {}
    for data in found:
        counts = poisoned.setdefault((data.train_images, data.clean_images, data.test_images), [])
        counts += [data.poisoned_images] if data.poisoned_images else []
    said = []
    for (train, clean, test), counts in poisoned.items():
        ends = " to ".join(f"{end:,}" for end in sorted({min(counts), max(counts)})) if counts else ""
        attacked = f" ({ends} poisoned)" if ends else ""
        repaired = f", {clean:,} clean for the repair" if clean else ""
        said.append(f"{train:,} training{attacked}{repaired}, {test:,} test")
    return "; ".join(said)


def _parameters(record: TrialRecord) -> str:
    return "" if record.parameters is None else f"{record.condition['model']['name']} {record.parameters:,}"


def _recipe(records: Sequence[TrialRecord], section: str) -> str:
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for path, value in flatten(record.condition.get(section, {})).items():
            values.setdefault(path, {})[show_cell(value)] = None
    said = {path: next(iter(seen)) if len(seen) == 1 else "varies" for path, seen in values.items()}
    return ", ".join(f"{path} {text}" for path, text in said.items() if text != "-")


def _time(records: Sequence[TrialRecord]) -> str:
    """Of every stage once, where it was computed."""
    stages: dict[str, StageRecord] = {stage.fingerprint: stage for record in records for stage in record.stages}
    seconds = [each for stage in stages.values() for each in stage.epochs.numbers("seconds") if each]
    return f"{show_duration(sum(seconds))} in {len(stages)} stages, without evaluation" if seconds else ""
