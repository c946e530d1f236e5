"""`docs/results.md` names every file, every column and every metric that there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bdray.condition import Condition, flatten
from bdray.detectors import DETECTORS
from bdray.questions import Questions
from bdray.recipes import Evaluate, Relearn
from bdray.record import TrialRecord
from bdray.results.reading import load_curves
from bdray.results.summary import summary_metrics
from bdray.results.tables import result_table
from bdray.store import file_names
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.tracking.points import answer_points, change_points, relearnt_points
from bdray.trial import TrialOptions, run_trial

PAGE = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
RESULTS, STAGES = ("poisoned", "finetuned", "pruned"), ("finetune", "prune")


def named(section: str) -> set[str]:
    """What the first cells of a section's tables name."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall("`([^`]+)`", row.split(" | ")[0])}


def as_named(name: str) -> str:
    """`finetuned/loss` as the page writes it."""
    if name == "poisoned_images":
        return name
    for result in RESULTS:
        name = re.sub(rf"^{result}(?=[_/])", "<result>", name)
    name = re.sub(r"(?<=[_/])(spectral_signatures|scale_up|mm_bd)(?=[_/])", "<detector>", name)
    for stage in STAGES:
        name = re.sub(rf"^{stage}(?=[_/])", "<stage>", name)
    return re.sub(r"^by_(trigger|cell)/.*", r"by_\1/<\1>/<column>", name)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, list[TrialRecord]]:
    """A poisoned and an unpoisoned condition with all that can be measured, by the real code."""
    sweep = Storage.open(tmp_path_factory.mktemp("runs")).child("sweep")
    base = {
        "data": {"name": "digits", "image_size": 16, "train_limit": 80, "test_limit": 40, "clean_pool": 0.25},
        "model": "resnet8",
        "trigger": "patch",
        "poison": {"cover_rate": 0.1},
        "repair": "fine_pruning",
        "train": {"epochs": 1, "batch_size": 32},
        "finetune": {"epochs": 1, "batch_size": 32, "fraction": 0.2},
    }
    poisoned = Condition.parse(base)
    conditions = [poisoned, poisoned.baseline()]
    detect = (
        DETECTORS.build("spectral_signatures"),
        DETECTORS.build({"name": "scale_up", "asked": 10}),
        DETECTORS.build({"name": "mm_bd", "starts": 1, "steps": 1}),
    )
    options = TrialOptions(
        device="cpu", questions=Questions(detect, Evaluate(probes=True, relearn=Relearn(triggered=4, clean=12)))
    )
    records = [run_trial(condition, sweep=sweep, options=options) for condition in conditions]
    assert [record.status for record in records] == ["finished", "finished"]
    return sweep, records


def test_every_column(swept: tuple[Storage, list[TrialRecord]]) -> None:
    records = swept[1]
    settings = {path for record in records for path in flatten(record.condition)}
    classes = {path for record in records for path in record.class_names}
    assert classes == {"poison.target_class"} and "`poison.target_class`" in PAGE
    columns = {as_named(str(column)) for column in result_table(records)} - settings - classes
    assert columns == named("Columns")


def test_every_column_of_curves(swept: tuple[Storage, list[TrialRecord]]) -> None:
    sweep, records = swept
    SweepFolder(sweep).write_info(SweepInfo("sweep", "sweep"))
    settings = {path for record in records for path in flatten(record.condition)} - {"seed"}
    assert set(load_curves(str(sweep.local_path()))) - settings == named("Curves")


def test_every_metric(swept: tuple[Storage, list[TrialRecord]]) -> None:
    sweep, records = swept
    folders = [SweepFolder(sweep).condition(record.condition_id) for record in records]
    lines = [line for folder in folders for line in folder.journal(folder.record())]
    metrics = {as_named(name) for line in lines for name in line["metrics"]}
    metrics |= {as_named(point.key) for folder in folders for point in answer_points(folder.answers(), 0)}
    metrics |= {as_named(point.key) for record in records for point in change_points(record.stages)}
    metrics |= {point.key for folder in folders for point in relearnt_points(folder.answered().relearnt, 0)}
    metrics |= {as_named(name) for name in summary_metrics(records, planned=2)}
    assert metrics == named("Metrics")


def test_every_file(swept: tuple[Storage, list[TrialRecord]]) -> None:
    constants = {
        value
        for name, value in vars(file_names).items()
        if name.isupper() and isinstance(value, str) and re.fullmatch(r"\.?\w+(\.\w+)?", value)
    } - {file_names.TABLE}
    said = named("Files")
    text = PAGE.split("\n## Files\n")[1].split("\n## ")[0]
    assert {name for name in constants if f"`{name}`" not in text and f"`{name}/" not in text} == set()
    there = {file.path for file in swept[0].files()}
    written = {re.sub(r"^(conditions|stages)/\w+/", "", path) for path in there}
    written = {re.sub(r"^answers/\w+", "answers/<key>", path) for path in written}
    assert {name for name in written if f"`{name}`" not in text} == set()
    known = {*constants, "results.csv", "results.parquet", "records/", "conditions/<condition_id>/"}
    assert said - known == {"stages/<fingerprint>/", "plugins/<digest>/", "pictures/"}
