"""`bdray stages`, `bdray compare` and the forms of `bdray results`, typed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bdray.cli import main
from bdray.condition import Condition
from bdray.record import TrialRecord, ValidationRecord
from bdray.results.tables import result_table, write_tables
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import DRIVER_LOCK
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.trial import TrialOptions, run_trial

SMALL = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 100, "test_limit": 40},
    "model": "resnet8",
    "trigger": "patch",
    "train": {"epochs": 1, "batch_size": 32},
    "finetune": {"epochs": 1, "batch_size": 16, "fraction": 0.2},
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps of two conditions each, without Ray."""
    root = tmp_path_factory.mktemp("storage")
    for name, stamp in (("before", "before_augmentation"), ("after", "after_augmentation")):
        sweep = Storage.open(root / name)
        conditions = [Condition.parse({**SMALL, "poison": {"stamp": stamp}, "seed": seed}) for seed in (1, 0)]
        ids = tuple(condition.condition_id for condition in conditions)
        SweepFolder(sweep).write_info(SweepInfo(name, name, conditions=ids))
        sweep.write_atomic("space.yaml", "fixed: {data: digits, model: resnet8, poison.rate: 0}")
        for condition in conditions:
            run_trial(condition, sweep=sweep, options=TrialOptions(threads=1))
            assert ConditionFolder(sweep, condition.condition_id).record() is not None
    return root


def test_kept_stages_are_listed_and_forgotten(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = storage / "before" / "stages"
    kept = {path.name for path in stages.iterdir() if (path / "stage.json").exists()}
    oldest = min(kept)
    for path in (stages / oldest).iterdir():
        os.utime(path, (1e9, 1e9))
    assert main(["stages", "before", "--storage", str(storage)]) == 0
    printed = capsys.readouterr().out
    assert {name for name in kept if name not in printed} == set()
    assert "2001-09-09 01:46" in printed
    total = sum(path.stat().st_size for name in kept for path in (stages / name).iterdir())
    assert main(["stages", "before", "--storage", str(storage), "--prune", str((total - 1) / 1e9)]) == 0
    assert "1 stages forgotten" in capsys.readouterr().out
    assert {path.name for path in stages.iterdir() if (path / "stage.json").exists()} == kept - {oldest}


def test_a_running_sweep_is_not_pruned(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bdray.errors import UserError

    with SweepFolder(Storage.open(storage / "after")).locked(DRIVER_LOCK, 0, UserError):
        assert main(["stages", "after", "--storage", str(storage), "--prune", "0"]) == 2
    assert "is running" in capsys.readouterr().err


def test_comparing(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "before", "after", "--storage", str(storage)]) == 0
    printed = capsys.readouterr().out
    assert "after minus before: 2 pairs" in printed
    assert "poison.stamp: before_augmentation in before, after_augmentation in after" in printed
    assert main(["compare", "before", "after", "--storage", str(storage), "--md"]) == 0
    assert capsys.readouterr().out.startswith("after minus before\n\n| trigger | n | C-Acc |")
    assert main(["compare", "before", "after", "--storage", str(storage), "--latex"]) == 0
    assert "after minus before. Percentage points" in capsys.readouterr().out


def test_forms_of_the_table(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["results", "before", "--storage", str(storage)]
    assert main([*typed, "--md", "--by", "trigger"]) == 0
    assert capsys.readouterr().out.startswith("| trigger | n | C-Acc |")
    assert main([*typed, "--latex"]) == 0
    assert r"\begin{tabular}" in capsys.readouterr().out
    assert main([*typed, "--where", "seed=1", "--csv", "-"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2
    assert main([*typed, "--csv", "-"]) == 0
    ids = [row.split(",")[0] for row in capsys.readouterr().out.splitlines()[1:]]
    assert ids == list(SweepFolder(Storage.open(storage / "before")).info().conditions), "in the order of the plan"
    assert main([*typed, "--sort", "nothing"]) == 2
    assert "there is no column 'nothing'" in capsys.readouterr().err


def kept(root: Path, records: list[TrialRecord]) -> list[str]:
    """What to type for the results of a sweep of these records."""
    folder = SweepFolder(Storage.open(root / "made"))
    folder.write_info(SweepInfo("made", "made", conditions=tuple(record.condition_id for record in records)))
    for record in records:
        folder.condition(record.condition_id).write_record(record)
    return ["results", "made", "--storage", str(root)]


def test_a_column_that_mixes_kinds_is_text_in_parquet(tmp_path: Path, make_record: Callable[..., TrialRecord]) -> None:
    """Found: pyarrow's traceback."""
    records = [make_record(train={"compile": value}) for value in (False, "auto")]
    file = tmp_path / "table.parquet"
    assert main([*kept(tmp_path, records), "--parquet", str(file)]) == 0
    table = pd.read_parquet(file)
    assert list(table["train.compile"]) == ["False", "auto"]
    write_tables(Storage.open(tmp_path / "made"), result_table(records))
    assert (tmp_path / "made" / "results.parquet").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("where", ["finetune.lr=0.1", "finetune.lr=0.01", "seed=0"])
def test_what_is_selected_is_the_same_whatever_is_chosen(
    tmp_path: Path, make_record: Callable[..., TrialRecord], capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """Found: chosen rows were compared among themselves, and contradicted results.csv."""
    accuracies = {(0.01, 0): 0.8, (0.01, 1): 0.8, (0.1, 0): 0.9, (0.1, 1): 0.5}
    records = [
        make_record(seed=seed, finetune={"lr": lr}).model_copy(
            update={"validation": ValidationRecord(images=100, clean_accuracy=accuracy)}
        )
        for (lr, seed), accuracy in accuracies.items()
    ]
    typed = kept(tmp_path, records)
    whole = result_table(records).set_index("condition_id")["selected"]
    assert main([*typed, "--where", where, "--csv", str(tmp_path / "t.csv")]) == 0
    found = pd.read_csv(tmp_path / "t.csv").set_index("condition_id")["selected"]
    assert 0 < len(found) < len(whole)
    assert found.to_dict() == whole[found.index].to_dict()
    assert main([*typed, "--where", where, "--md", "--sort", "n"]) == 0
    said = capsys.readouterr().out.splitlines()[2:]
    assert sum("selected" in row for row in said) == int(whole[found.index].any())


def test_a_dry_run_says_how_many_conditions_are_done(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "before.yaml"
    space.write_text(yaml.safe_dump({"seeds": [0, 1, 2], "fixed": {**SMALL, "model": {"name": "resnet8"}}}))
    assert main(["sweep", str(space), "--dry-run", "--storage", str(storage)]) == 0
    assert f"done     2 of 3 conditions (in {storage / 'before'})" in capsys.readouterr().out
    assert main(["sweep", str(space), "--dry-run", "--storage", str(tmp_path / "none")]) == 0
    assert "done" not in capsys.readouterr().out
