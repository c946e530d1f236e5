"""A real sweep, watched in a real MLflow database while it trains."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

pytestmark = [pytest.mark.system, pytest.mark.long]

ROOT = Path(__file__).parents[2]
EPOCHS = 8
SPACE = f"""\
name: live
seeds: [0]
baselines: false
plugins: [slow_trigger]
fixed:
  data: {{name: digits, image_size: 16, train_limit: 64, test_limit: 20}}
  model: {{name: resnet8}}
  trigger: {{name: slow}}
  train: {{epochs: {EPOCHS}, batch_size: 32}}
  finetune: {{epochs: 0}}
tracking: {{uri: "sqlite:///elsewhere.db"}}
"""
PLUGIN = '''
import time
from pathlib import Path
import pytest
from bdray.triggers.base import TRIGGERS, Trigger

@TRIGGERS.register("slow")
class Slow(Trigger):
    """Inverts, and trains no further than its epochs were seen in the database."""

    def apply(self, images, generator):
        return 255 - images
'''
SLOW = """
import torch
_here, _step = Path(__file__).parent, torch.optim.SGD.step
def _slowly(self, *args, **kwargs):
    journals = _here.glob("runs/live/conditions/*/journal.jsonl")
    epochs = sum(len(journal.read_bytes().splitlines()) for journal in journals)
    while any(epochs >= number and not (_here / f"seen-{number}").exists() for number in (2, 5)):
        time.sleep(0.05)
    return _step(self, *args, **kwargs)
torch.optim.SGD.step = _slowly
"""


def histories(uri: str) -> list[list[tuple[int, float]]]:
    """(step, value) of the loss of each run of a condition."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bdray-live")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [
        sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss"))
        for run in runs
        if "bdray.condition_id" in run.data.tags
    ]


def test_a_running_conditions_curve_grows_in_mlflow(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "elsewhere.db")
    (tmp_path / "live.yaml").write_text(SPACE)
    (tmp_path / "slow_trigger.py").write_text(PLUGIN + SLOW)
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "BDRAY_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "bdray.sweep", "live.yaml", "--no-dashboard", "--num-cpus", "1"]
    database, lengths = tmp_path / "elsewhere.db", set()
    with (tmp_path / "output.txt").open("w") as output:
        sweep = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        try:
            while sweep.poll() is None:
                lengths |= {len(history) for history in histories(f"sqlite:///{database}")} - {0, EPOCHS}
                for number, _ in zip((2, 5), lengths, strict=False):
                    (tmp_path / f"seen-{number}").touch()
                time.sleep(0.5)
        finally:
            if sweep.poll() is None:
                os.killpg(sweep.pid, signal.SIGKILL)
            sweep.wait()
    assert sweep.returncode == 0, (tmp_path / "output.txt").read_text()
    assert len(lengths) >= 2, lengths
    (history,) = histories(f"sqlite:///{database}")
    assert [step for step, _ in history] == list(range(1, EPOCHS + 1))
    assert not (tmp_path / "runs" / "mlflow.db").exists(), "the space names another place"
