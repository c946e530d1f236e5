"""A real sweep in which `search.prune` ends poison stages early, typed again, and typed with --retry-failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from bdray.store.records import read_records
from bdray.store.storage import Storage

pytestmark = [pytest.mark.system, pytest.mark.long]

ROOT = Path(__file__).parents[1]
SPACE = """\
name: tiny
seeds: [0]
fixed:
  data: {name: digits, image_size: 16, train_limit: 200, test_limit: 50}
  model: {name: resnet8}
  trigger: patch
  train: {epochs: 6, batch_size: 32, precision: float32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1}
parameters:
  train.lr: {values: [0.1, 0.2, 0.00001]}
  finetune.lr: {values: [0.01, 0.1]}
baselines: true
search: {method: grid, prune: {metric: loss, warmup_epochs: 2, startup_trials: 2}}
"""
HOPELESS = 0.00001


def typed(folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bdray.sweep", "space.yaml", "--no-dashboard", "--num-cpus", "1", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BDRAY_CACHE": str(folder / "cache"), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("database_in_runs")
def test_a_hopeless_stage_ends_early_and_is_run_again_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    said = typed(tmp_path, "--notify", "http://127.0.0.1:1/")
    assert "'finished' was not told" in said, "nobody listens there"
    assert "'failed' was not told" not in said, "what is pruned has not failed"
    sweep = Storage.open(tmp_path / "runs" / "tiny")
    records = read_records(sweep)
    pruned = [record for record in records if record.status == "pruned"]
    # One CPU: in the order of the plan, so that the hopeless ones come last.
    assert {record.condition["train"]["lr"] for record in pruned} == {HOPELESS}
    assert [record.role for record in pruned] == ["poisoned"] * 2
    assert Counter(record.status for record in records) == {"finished": 10, "pruned": 2}
    first, second = (record.stages[0].epochs for record in pruned)
    assert 2 <= len(first) < 6
    assert first == second, "the one that shares the stage trained nothing"
    assert "2 of 12 conditions were pruned" in said
    assert "2 pruned" in said
    table = pd.read_csv(tmp_path / "runs" / "tiny" / "results.csv")
    rates = [name for name in table if str(name).endswith(("_accuracy", "success_rate"))]
    assert table[table.status == "pruned"][rates].isna().all(axis=None)
    report = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert f"search.prune ended its poison stage after {len(first)} of 6 epochs" in report
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("bdray-tiny").experiment_id])
    states = Counter((run.info.status, run.data.tags.get("bdray.status")) for run in runs)
    assert states == {("FINISHED", "finished"): 10, ("KILLED", "pruned"): 2, ("FINISHED", None): 1}

    assert "12 already done, 0 to run" in typed(tmp_path)
    assert [record.finished_ms for record in read_records(sweep)] == [record.finished_ms for record in records]

    assert "10 already done, 2 to run" in typed(tmp_path, "--retry-failed")
    again = read_records(sweep)
    assert {record.status for record in again} == {"finished"}
    by_id = {record.condition_id: record for record in again}
    for record in pruned:
        longer = by_id[record.condition_id].stages[0].epochs
        assert len(longer) == 6
        assert longer[: len(first)] == first, "it went on from where it had ended"
    journal = (tmp_path / "runs" / "tiny" / "conditions" / pruned[0].condition_id / "journal.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in journal.splitlines() if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6, *steps[6:]]
