"""The short form of `make cluster-test`: hosts, PostgreSQL, S3, MLflow and Ray, struck while a sweep runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import HANG_S

from bdray.space import load_space
from benchmarks.cluster import Outcome, space_of
from benchmarks.hosts import why_not
from benchmarks.services import PostgreSQL

ROOT = Path(__file__).parents[1]


@pytest.mark.system
@pytest.mark.long
def test_a_disturbed_cluster_comes_to_the_same_as_one_machine() -> None:
    if why := why_not() or PostgreSQL.why_not():
        pytest.skip(why)
    command = [sys.executable, "-m", "benchmarks.cluster", "--short", "--storages", "s3", "--epochs", "20"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.rstrip().endswith("| 0 | 0 | 0 |"), run.stdout


def test_what_counts_as_lost_doubled_and_different() -> None:
    names = "abcdef"
    expected: dict[str, Any] = {
        "results": {name: {"record": name} for name in names},
        "runs": {name: [{"metrics": name}] for name in names},
        "tables": [{"id": name} for name in names],
    }
    same = Outcome("here", disturbances=["one"], planned=1, statuses=[-9, 0])
    same.compare(expected, expected)
    assert same.is_good
    found = {
        "results": {**expected["results"], "b": {"record": "other"}, "g": {}},
        "runs": {**expected["runs"], "c": [{"metrics": "other"}], "d": [{"metrics": "d"}, {"metrics": "d"}]},
        "tables": expected["tables"][1:],
    }
    del found["results"]["a"], found["runs"]["e"]
    wrong = Outcome("here", disturbances=["one"], planned=1, statuses=[0])
    wrong.compare(found, expected)
    assert (wrong.lost, wrong.doubled, wrong.different) == (2, 2, 3)
    assert wrong.wrong == ["the tables differ"]
    assert not wrong.is_good
    assert not Outcome("here", disturbances=[], planned=1, statuses=[0]).is_good


def test_the_spaces_have_as_many_conditions_as_they_say(tmp_path: Path) -> None:
    for short, count in ((False, 40), (True, 6)):
        (tmp_path / "hosts.yaml").write_text(space_of(epochs=2, short=short))
        assert len(load_space(tmp_path / "hosts.yaml").conditions()) == count
