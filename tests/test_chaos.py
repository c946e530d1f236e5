"""A short form of `make chaos`: a real sweep that is struck six times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chaos
from benchmarks.chaos import Round, Strike, table
from benchmarks.hosts import why_not

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are followed by what only Linux has")
@pytest.mark.system
def test_a_sweep_that_is_struck_six_times_comes_to_the_same(tmp_path: Path) -> None:
    """A worker, the driver, the GCS, a raylet, the mirror, and the link to MLflow: in one round, unless the sweep ends
    before all of them were there to be struck; then those that are left in another one."""
    log, kinds = tmp_path / "log", {"worker", "driver", "gcs", "raylet", "mirror", "link"}
    options = ["--span", "6", "--targets", *sorted(kinds), "--each", "--seed", "1479", "--log", str(log)]
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
    assert {strike.target for strike in struck} == kinds - ({"link"} if why_not() else set())
    assert len(struck) == len({strike.target for strike in struck})
    assert f"| all | | {len(struck)} |" in done.stdout
    assert all(one.is_good and one.commands for one in rounds)
    assert {strike.status for strike in struck} <= {0, 3, 130, -9}


def test_the_table_in_the_docs_is_that_of_the_kept_log() -> None:
    rounds = [Round.of(line) for line in (ROOT / "tests" / "chaos" / "seed-2.jsonl").read_text().splitlines()]
    assert sum(len(one.strikes) for one in rounds) > 200
    assert all(one.is_good and one.seed == 2 for one in rounds)
    said = (ROOT / "docs" / "operations.md").read_text()
    assert table(rounds) in said


def test_the_rounds_after_the_rewriting_are_those_of_their_log() -> None:
    rounds = [Round.of(line) for line in (ROOT / "tests" / "chaos" / "seed-141.jsonl").read_text().splitlines()]
    struck = [strike.target for one in rounds for strike in one.strikes]
    assert set(struck) == {*chaos.TARGETS, chaos.SERVER, chaos.LINK} and len(set(struck)) == 8
    assert all(one.is_good and one.seed == 141 for one in rounds)
    said = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    counts = f"{len(struck)} strikes, {struck.count(chaos.LINK)} of them cuts, in {len(rounds)} rounds"
    seconds = [one.seconds for one in rounds]
    assert f"{counts} of {min(seconds):.0f} to {max(seconds):.0f} s." in said
    assert table(rounds).splitlines()[-1] in said


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
    other: dict[str, Any] = {"started_ms": 2, "stages": [{"epochs": [{"loss": 0.5, "seconds": 4.0}], "reused": False}]}
    assert chaos.lasting(one) == chaos.lasting(other)
    other["stages"][0]["epochs"][0]["loss"] = 0.6
    assert chaos.lasting(one) != chaos.lasting(other)
