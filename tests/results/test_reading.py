"""`import bdray`: results and curves of a sweep, and one condition, in Python."""

import subprocess
import sys
from pathlib import Path

import pytest

import bdray
from bdray.errors import UserError
from bdray.record import RATES, TrialRecord
from bdray.store.condition_folder import ConditionFolder
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo

SMALL = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 100, "test_limit": 40},
    "model": "resnet8",
    "trigger": "patch",
    "train": {"epochs": 1, "batch_size": 32},
    "finetune": {"epochs": 1, "batch_size": 16, "fraction": 0.2},
}


CURVES = ("stage", "result", "epoch", "loss", "penalty", "accuracy", "seconds", *RATES)


@pytest.fixture(scope="module")
def record() -> TrialRecord:
    return bdray.run_trial(bdray.Condition.parse(SMALL))


def test_results_and_curves_of_a_sweep(tmp_path: Path, record: TrialRecord) -> None:
    sweep = Storage.open(str(tmp_path))
    SweepFolder(sweep).write_info(SweepInfo("small", "bdray-small", conditions=(record.condition_id,)))
    folder = ConditionFolder(sweep, record.condition_id)
    folder.write_condition(bdray.Condition.parse(SMALL))
    folder.write_record(record)
    table, curves = bdray.load_results(tmp_path), bdray.load_curves(tmp_path)
    assert record.poisoned is not None
    assert list(table["condition_id"]) == [record.condition_id]
    assert table["poisoned_clean_accuracy"][0] == record.poisoned.clean_accuracy
    assert list(curves["stage"]) == ["poison", "finetune", "finetune"]
    assert list(curves["epoch"]) == [1, 0, 1]
    assert curves["loss"].isna().tolist() == [False, True, False]
    assert set(curves["trigger.size"]) == {3}
    assert set(curves["role"]) == {"poisoned"}
    assert set(table.columns) >= set(curves.columns) - {*CURVES}
    last = curves[(curves["result"] == "poisoned") & (curves["epoch"] == 1)]
    assert last["attack_success_rate"].item() == record.poisoned.attack_success_rate


def test_no_sweep_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no sweep in"):
        bdray.load_curves(tmp_path / "nothing")


def test_what_is_offered() -> None:
    assert {"Condition", "load_curves", "load_model", "load_results", "run_trial"} <= set(dir(bdray))
    with pytest.raises(AttributeError, match="no attribute 'load_record'"):
        _ = bdray.load_record


def test_importing_bdray_imports_nothing_heavy() -> None:
    code = "import bdray, sys; print([m for m in ('torch', 'ray', 'mlflow', 'pydantic', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
