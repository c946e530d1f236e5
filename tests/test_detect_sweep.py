"""A detector that is added to a finished sweep asks the models that are kept, and computes nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from bdray.cluster.job import ClusterSettings
from bdray.space import load_space
from bdray.store.file_names import MANIFEST, MODEL
from bdray.sweeping.run_sweep import run_sweep
from bdray.sweeping.settings import SweepOutcome, SweepSettings
from bdray.terminal import Console

SPACE = """\
name: asked
fixed:
  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 40}
  model: {name: resnet8}
  trigger: {name: patch}
  train: {epochs: 1, batch_size: 32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.2}
baselines: true
resources: {keep_models: true}
"""
RELEARN = "evaluate: {relearn: {triggered: 4, clean: 8}}\n"


@pytest.mark.system
@pytest.mark.long
@pytest.mark.usefixtures("database_in_runs")
def test_a_detector_added_to_a_finished_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    said = io.StringIO()

    def run(text: str) -> SweepOutcome:
        space = tmp_path / "asked.yaml"
        space.write_text(text)
        settings = SweepSettings(
            storage=str(tmp_path / "runs"), cluster=ClusterSettings(num_cpus=1, num_gpus=0, dashboard=False)
        )
        return run_sweep(load_space(space), settings, Console(file=said, width=200))

    run(SPACE)
    folder = tmp_path / "runs" / "asked"
    before = {path: path.read_bytes() for path in folder.glob("conditions/*/*")}
    models = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/model.safetensors")}
    outcome = run(f"{SPACE}detect: [spectral_signatures]\n{RELEARN}")
    assert len(outcome.records) == 2
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/model.safetensors")} == models
    table = pd.read_csv(folder / "results.csv").set_index("role")
    assert 0 <= table["poisoned_spectral_signatures_auroc"]["poisoned"] <= 1
    assert table["poisoned_spectral_signatures_fpr"].notna().all()
    assert 0 <= table["relearnt_attack_success_rate"]["poisoned"] <= 1
    assert 0 <= table["relearnt_asr_floor"]["poisoned"] <= 1
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("bdray-asked")
    assert experiment is not None
    (run_of_poisoned,) = client.search_runs([experiment.experiment_id], "tags.`bdray.role` = 'poisoned'")
    assert {"poisoned/spectral_signatures/auroc", "relearnt/attack_success_rate"} <= {*run_of_poisoned.data.metrics}

    # What nobody keeps cannot be asked: it is named, with what trains it again.
    for path in folder.glob(f"stages/*/{MANIFEST}"):
        path.unlink()
    gone = {path for path in before if path.name == MODEL}
    for path in gone:
        path.unlink()
    run(f"{SPACE}detect: [spectral_signatures, activation_clustering]\n{RELEARN.replace('4', '5')}")
    assert {path: path.read_bytes() for path in before if path not in gone} == {
        path: content for path, content in before.items() if path not in gone
    }
    assert said.getvalue().count("is not kept any more, so no detector can be asked; this trains it again: bdray") == 2
    assert (
        said.getvalue().count(
            "is not kept any more, so its repaired model cannot be asked, nor can 1 others; this trains it again"
        )
        == 1
    )
