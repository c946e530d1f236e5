"""A sweep as Prometheus sees it: the real command, its real endpoint on loopback, and the files that show it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from waiting import HANG_S

from bdray.cluster.gauges import METRICS
from bdray.space import load_space
from bdray.store.storage import Storage
from bdray.store.sweep_status import read_sweep_status

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SPACE = """\
name: watched
seeds: [0]
fixed:
  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 40}
  model: {name: resnet8}
  trigger: {name: patch}
  train: {epochs: 100000, batch_size: 50}
  finetune: {epochs: 0}
"""
SAMPLE = re.compile(r"^ray_(bdray_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


@pytest.fixture
def running(tmp_path: Path, database_in_runs: None) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "watched.yaml").write_text(SPACE)
    process = subprocess.Popen(
        [sys.executable, "-m", "bdray.sweep", "watched.yaml", "--no-dashboard", "--num-cpus", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_enable_metrics_collection": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.wait()


def below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def scraped(process: subprocess.Popen[str]) -> str:
    """What all metrics endpoints below a process say."""
    said = []
    for child in below(process):
        with suppress(psutil.Error):
            if "agent" not in " ".join(child.cmdline()).lower():
                continue
            for connection in child.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    with suppress(OSError, http.client.HTTPException):
                        url = f"http://127.0.0.1:{connection.laddr.port}/metrics"
                        said.append(urllib.request.urlopen(url, timeout=5).read().decode())
    return "\n".join(said)


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in SAMPLE.findall(text):
        found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)))
    return found


def is_shown(seen: Mapping[str, Sequence[tuple[dict[str, str], float]]], shown: set[float]) -> bool:
    """Whether the time left is one that was shown."""
    ((_, left),) = seen["bdray_left_seconds"]
    return any(left == pytest.approx(seconds) for seconds in shown)


@pytest.mark.system
def test_a_running_sweep_is_seen(running: subprocess.Popen[str], tmp_path: Path) -> None:
    (condition,) = load_space(str(tmp_path / "watched.yaml")).conditions()
    seen: dict[str, list[tuple[dict[str, str], float]]] = {}
    shown: set[float] = set()
    while not (METRICS.keys() <= seen.keys() and is_shown(seen, shown)) and running.poll() is None:
        time.sleep(0.5)
        sweep_status = read_sweep_status(Storage.open(str(tmp_path / "runs" / "watched")))
        shown |= {sweep_status.left_s} if sweep_status and sweep_status.left_s is not None else set()
        # A gauge is there for some seconds after each time it is told.
        seen |= samples(scraped(running))
    titles = [title for child in below(running) if (title := " ".join(child.cmdline()).strip()).startswith("ray::Cond")]
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=HANG_S)
    assert running.returncode == 130, said
    assert seen.keys() == METRICS.keys(), said
    for name, (_, keys) in METRICS.items():
        assert all(labels.keys() >= set(keys) and labels["sweep"] == "watched" for labels, _ in seen[name])
    assert {(labels["state"], value) for labels, value in seen["bdray_conditions"]} == {
        *(("running", 1.0), ("finished", 0.0), ("failed", 0.0), ("pruned", 0.0), ("waiting", 0.0))
    }
    assert is_shown(seen, shown), "what `bdray status` and the terminal say"
    for name in METRICS.keys() - {"bdray_conditions", "bdray_left_seconds"}:
        ((labels, value),) = seen[name]
        assert labels["condition"] == condition.condition_id
        assert value > 0 or name == "bdray_gpu_share"
    assert titles == [f"ray::Condition.train {condition.condition_id} of watched"]


def test_the_dashboard_shows_what_there_is() -> None:
    folder = ROOT / "docker" / "grafana" / "dashboards"
    dashboard = json.loads((folder / "bdray.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for query in queries for name in re.findall(r"\bray_(bdray_\w+)", query)}
    assert used == METRICS.keys()
    for query in queries:
        (name,) = re.findall(r"\bray_(bdray_\w+)", query)
        matched = set(re.findall(r"(\w+)=~?\"", query)) | set(re.findall(r"\bby \((\w+)\)", query))
        assert matched <= set(METRICS[name][1]), query
    assert "/etc/grafana/provisioning/dashboards" in (folder / "bdray.yaml").read_text()
