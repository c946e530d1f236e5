"""A short form of `make chaos`: real sweeps that lose Ray's raylet and its GCS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import chaos
from benchmarks.chaos import Round, Strike, table

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are followed by what only Linux has")
def test_a_sweep_survives_its_raylet_and_its_gcs(tmp_path: Path) -> None:
    """Seed 126 kills the one and then the other, late."""
    log = tmp_path / "log"
    options = ["--span", "6", "--rounds", "2", "--seed", "126", "--targets", "raylet", "gcs", "--log", str(log)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = [Round.of(line) for line in log.read_text().splitlines()]
    struck = [strike for one in rounds for strike in one.strikes]
    assert {(strike.target, strike.signal) for strike in struck} == {("raylet", "SIGKILL"), ("gcs", "SIGKILL")}
    # Struck, and ended by the very command that was struck.
    assert [strike.status for strike in struck] == [0, 0]
    assert [one.commands for one in rounds] == [1, 1]
    assert "| all | | 2 | 2 x 0 | 0 |" in done.stdout


def test_a_bad_round_shows_in_the_table() -> None:
    strike = Strike("worker", "SIGTERM", 0.5, status=0)
    bad = Round(
        1, 1, [strike, Strike("server", "SIGKILL", 0.1, status=3)], commands=3, lost=1, another=True, files=["a"]
    )
    good = Round(1, 2, [strike], commands=1)
    assert (bad.is_good, good.is_good) == (False, True)
    lines = table([bad, good]).splitlines()
    assert lines[2:5] == [
        "| worker | SIGTERM | 2 | 2 x 0 | 1 |",
        "| server | SIGKILL | 1 | 1 x 3 | 1 |",
        "| all | | 3 | 2 x 0, 1 x 3 | 2 |",
    ]
    assert "rounds: 2, commands a round: 1 x 1, 1 x 3, conditions lost: 1" in lines[-1]
    assert "rounds needing another command: 1" in lines[-1] and "files left: 1" in lines[-1]


def test_times_are_no_difference_but_numbers_are() -> None:
    one = {"started_ms": 1, "stages": [{"epochs": [{"loss": 0.5, "seconds": 3.0}], "reused": True}]}
    other = {"started_ms": 2, "stages": [{"epochs": [{"loss": 0.5, "seconds": 4.0}], "reused": False}]}
    assert chaos.lasting(one) == chaos.lasting(other)
    other["stages"][0]["epochs"][0]["loss"] = 0.6
    assert chaos.lasting(one) != chaos.lasting(other)
