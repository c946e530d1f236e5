"""From typing the command to the first training epoch, and what the commands cost that train nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Report, Row, progress

SPACE = """
name: cold
seeds: [0, 1]
fixed:
  data: {name: digits, train_limit: 200, test_limit: 100}
  model: {name: resnet8}
  trigger: {name: patch}
  poison: {rate: 0.1}
  train: {epochs: 1, batch_size: 64}
  finetune: {epochs: 0}
baselines: false
"""
LANDMARKS = {
    "folder": "planned",
    "dashboard": "Ray is up",
    "tracking": "MLflow is ready",
}
"""First words of the lines that the sweep prints, and what has then been done."""


def measure(*, quick: bool = False) -> Report:
    """Wall times from the start of the command."""
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder, "space.yaml")
        space.write_text(SPACE)
        commands = {
            "python -c 'import torch, ray.tune'": [sys.executable, "-c", "import torch, ray.tune"],
            "bdray --help": [sys.executable, "-m", "bdray", "--help"],
            "bdray sweep --dry-run": [sys.executable, "-m", "bdray", "sweep", str(space), "--dry-run"],
        }
        rows = [Row(name, {"s": median_seconds(command, rounds)}) for name, command in commands.items()]
        starts = [] if quick else [landmarks(space, Path(folder, f"runs{number}")) for number in range(rounds + 1)]
        # The first start also decodes the data set and fills the disk cache.
        rows += [
            Row(f"bdray.sweep: {name}", {"s": statistics.median(start[name] for start in starts[1:])})
            for name in (starts[0] if starts else ())
        ]
    return Report(
        "Cold start: seconds from typing the command",
        "",
        rows,
        [
            "Medians. The sweep's figures are times since the command was typed, with MLflow's database made"
            " anew and Ray started for it: its process, its workers and the mirror to MLflow each import what"
            " they need, side by side.",
        ],
    )


def median_seconds(command: Sequence[str], rounds: int) -> float:
    """Wall seconds of a command that must succeed; it runs once unmeasured."""
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    progress(f"  {' '.join(command[1:3])}: {seconds[-1]:.2f} s")
    return statistics.median(seconds[1:])


def landmarks(space: Path, storage: Path) -> dict[str, float]:
    """Run the sweep; seconds from its start to each landmark, told by lines it prints and files it writes once."""
    environment = {**os.environ, "BDRAY_CACHE": str(space.parent / "cache"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "bdray.sweep", str(space), "--storage", str(storage), "--num-cpus", "2"]
    began, seen = time.time(), dict[str, float]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if (word := line.partition(" ")[0]) in LANDMARKS:
                seen[LANDMARKS[word]] = time.time() - began
        ended = time.time() - began
    assert process.returncode == 0, f"the sweep ended with status {process.returncode}"
    seen["a worker has loaded data and model code"] = _first(storage, "conditions/*/poison_plan.npz") - began
    seen["first epoch trained and evaluated"] = _first(storage, "stages/*/stage.json") - began
    seen["second trial finished"] = _last(storage, "conditions/*/record.json") - began
    seen["the command has ended"] = ended
    progress("  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in seen.items()))
    return seen


def _first(storage: Path, pattern: str) -> float:
    return min(path.stat().st_mtime for path in storage.glob(f"cold/{pattern}"))


def _last(storage: Path, pattern: str) -> float:
    return max(path.stat().st_mtime for path in storage.glob(f"cold/{pattern}"))
