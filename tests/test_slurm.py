"""The short form of `python -m benchmarks.slurm`: `docker/slurm.sh` on a real Slurm, ended and submitted again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from waiting import HANG_S

from benchmarks import slurm
from benchmarks.hosts import why_not

ROOT = Path(__file__).parents[1]


@pytest.mark.system
@pytest.mark.long
def test_a_job_that_is_ended_goes_on_when_it_is_submitted_again() -> None:
    if why := why_not() or slurm.why_no_slurm():
        pytest.skip(why)
    command = [sys.executable, "-m", "benchmarks.slurm", "--short"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "SIGTERM by scancel --batch | 130, 0 |" in run.stdout
    assert run.stdout.rstrip().endswith("| 0 | 0 | 0 |"), run.stdout


def test_without_slurm_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "why_not", str)
    monkeypatch.setattr(slurm, "TOOLS", ("no-such-slurmd",))
    monkeypatch.setattr(sys, "argv", ["slurm"])
    assert slurm.main() == 0
    assert capsys.readouterr().out.startswith("skipped: no-such-slurmd is not installed (Debian: apt-get install ")
