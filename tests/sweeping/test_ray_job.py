"""`ray job submit`, `ray job stop` and the same submission again, on a head started by `docker/compose.yaml`'s command
line."""

from __future__ import annotations

import csv
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from waiting import HANG_S, until

from bdray.store.file_names import RECORD
from benchmarks.ports import free_port

pytestmark = [pytest.mark.system, pytest.mark.long]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SPACE = """
name: submitted
fixed:
  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 40}
  model: {name: resnet8}
  trigger: {name: patch}
  train: {batch_size: 32, precision: float32}
  finetune: {epochs: 1, batch_size: 32, precision: float32}
# One is over soon, and one is not while the job is being stopped.
parameters:
  train.epochs: {values: [1, 400]}
resources: {cpu: 1}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="bdray-j-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(folder: Path) -> Iterator[Mapping[str, str]]:
    """What a command needs to reach a head that has one CPU and listens on loopback."""
    head = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["head"]
    ports = {
        name: free_port()
        for name in (
            "port",
            "dashboard-port",
            "dashboard-agent-listen-port",
            "metrics-export-port",
            "ray-client-server-port",
        )
    }
    own = [*(f"--{name}={port}" for name, port in ports.items()), f"--temp-dir={folder / 'ray'}", "--num-cpus=1"]
    environment = {
        **os.environ,
        **{name: value for name, value in head["environment"].items() if name.startswith("RAY_JOB")},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "BDRAY_CACHE": str(folder / "cache"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Keeps Ray on the loopback interface, as `bdray.cluster.local_ray` says.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
    }
    command = [*head["command"].split(), "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", *own]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    until(lambda: answers(f"{environment['RAY_API_SERVER_ADDRESS']}/api/gcs_healthz", process, folder / "head.log"))
    yield environment
    process.send_signal(signal.SIGTERM)
    process.wait(HANG_S)


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return bool(urlopen(url, timeout=5).status == 200)
    except (URLError, TimeoutError):
        return False


def test_a_submitted_sweep_is_stopped_resumably_and_goes_on(folder: Path, environment: Mapping[str, str]) -> None:
    (folder / "space.yaml").write_text(SPACE)
    sweep = folder / "runs" / "submitted"

    def tried(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), "job", *arguments]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)

    def ray_job(*arguments: str) -> str:
        run = tried(*arguments)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def records() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in sweep.glob(f"conditions/*/{RECORD}")}

    entrypoint = f"{sys.executable} -m bdray sweep {folder}/space.yaml --address auto --storage {folder}/runs"
    # The head answers before it takes jobs.
    first = ("submit", "--no-wait", "--submission-id=first", "--", *entrypoint.split())
    until(lambda: tried(*first).returncode == 0)
    until(lambda: bool(records()))
    ray_job("stop", "first")
    done = records()
    assert len(done) == 1
    assert "interrupted with 1 conditions to go; continue with: " in ray_job("logs", "first")

    said = ray_job("submit", "--submission-id=second", "--", *entrypoint.split())
    assert "2 conditions, 1 already done, 1 to run" in said
    with (sweep / "results.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 2
    assert done.items() < records().items(), "what was done is not done again"
