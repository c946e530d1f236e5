"""What the driver records of a condition whose process wrote no record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from waiting import HANG_S, until

from bdray.commands.launch import tell
from bdray.condition import Condition
from bdray.record import TrialRecord
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.observing import record_lost
from bdray.sweeping.settings import SweepOutcome, SweepRun
from bdray.terminal import Console

ROOT = Path(__file__).parents[2]
GPU = (
    "bdray.cluster.gpu_health.GpuLostError: [0a1b] GPU 1 of node 4d4765 gave an error: CUDA error: misaligned address\n"
)


@pytest.mark.parametrize(
    ("details", "kind", "said"),
    [
        (GPU, "GpuError", "it ended so on two GPUs, or twice on one that passed its self-test in between: the cause"),
        ("a signal", "ProcessLost", "its process was lost 3 times in a row without progress: the cause"),
    ],
)
def test_a_condition_at_fault_on_gpus_is_told_from_a_lost_process(
    tmp_path: Path, details: str, kind: str, said: str
) -> None:
    condition = Condition.parse({"data": "digits", "model": "resnet8", "trigger": {"name": "patch"}})
    sweep, name = Storage.open(tmp_path), condition.condition_id
    run = cast(SweepRun, SimpleNamespace(left=[condition], sweep=sweep))
    record_lost(run, {name: "the cause"}, {name: details})
    record = read_record(sweep, name)
    assert record is not None
    assert record.error is not None
    assert (record.error.kind, record.error.message) == (kind, said)


def test_the_record_of_a_finished_condition_stands_and_the_command_says_why_no_more_is_known(
    tmp_path: Path, make_record: Callable[..., TrialRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, finished, unasked = Storage.open(tmp_path), make_record(), dict[str, str]()
    name = finished.condition_id
    SweepFolder(sweep).condition(name).write_record(finished)
    run = SimpleNamespace(left=[Condition.parse(finished.condition)], sweep=sweep, unasked=unasked)
    record_lost(cast(SweepRun, run), {name: "a [signal]"}, {name: "a signal"})
    assert read_record(sweep, name) == finished
    assert unasked == {name: "a [signal]"}
    outcome = SweepOutcome(sweep, SweepInfo("q", "bdray-q"), [], [], False, None, "sqlite:///x.db", unasked)
    assert tell(outcome, Console(width=200), "bdray sweep x.yaml") == 1
    said = capsys.readouterr().out
    assert f"more was asked of them:\n  {name}  a [signal]\ntheir results stand; ask again with: bdray sweep x" in said


PLUGIN = '''
import os, time
from pathlib import Path
from bdray.detectors.base import DETECTORS, ModelDetector

@DETECTORS.register("lost_killer")
class Killer(ModelDetector):
    """Ends its process, or takes its time."""
    def score(self, model, clean, tools):
        if Path(__file__).with_name("kills").exists():
            os.kill(os.getpid(), 9)
        Path(__file__).with_name("asked").touch()
        time.sleep(3600)

    def flagged(self, scores):
        return scores > 2
'''
SPACE = """\
name: lost
plugins: [lost_plugin]
fixed:
  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}
  model: {name: resnet8}
  trigger: {name: patch}
  train: {epochs: 1, batch_size: 32, precision: float32}
  repair: {name: none}
baselines: false
resources: {cpu: 1}
"""


@pytest.mark.system
@pytest.mark.long
@pytest.mark.usefixtures("database_in_runs")
def test_a_finished_condition_of_which_more_is_asked_counts_until_it_has_answered(tmp_path: Path) -> None:
    (tmp_path / "lost_plugin.py").write_text(PLUGIN)

    def command(text: str) -> subprocess.Popen[str]:
        (tmp_path / "lost.yaml").write_text(text)
        return subprocess.Popen(
            [sys.executable, "-m", "bdray", "sweep", "lost.yaml", "--no-dashboard", "--num-cpus", "1"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    first = command(SPACE)
    assert first.communicate(timeout=HANG_S) and first.returncode == 0
    second = command(f"{SPACE}detect: [lost_killer]\n")
    until((tmp_path / "asked").exists)
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=HANG_S)
    assert second.returncode == 130
    assert "interrupted with 1 conditions to go" in said
    (tmp_path / "kills").touch()
    third = command(f"{SPACE}detect: [lost_killer]\n")
    said, _ = third.communicate(timeout=HANG_S)
    assert third.returncode == 1
    assert "1 finished conditions lost their process while more was asked of them:" in said
