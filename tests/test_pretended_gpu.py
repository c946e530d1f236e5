"""What is shown on a pretended GPU (`tests/pretended`), in a process of its own: torch counts its devices once, at the
first backward pass, and whoever has a device more has another `pin_memory`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONG = {"parts"}
"""Start a process for each of their tests."""
PARTS = [
    pytest.param(file.stem, marks=(pytest.mark.system, pytest.mark.long) if file.stem in LONG else ())
    for file in sorted((HERE / "pretended").glob("[a-z]*.py"))
    if file.stem != "conftest"
]


@pytest.mark.parametrize("part", PARTS)
def test_on_a_pretended_gpu(part: str, tmp_path: Path) -> None:
    program = [
        sys.executable,
        "-m",
        "pytest",
        f"{HERE}/pretended/{part}.py",
        "-rs",
        "--basetemp",
        f"{tmp_path}/t",
    ]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        program,
        cwd=HERE.parent,
        env={**alone, "OMP_NUM_THREADS": "1", "BDRAY_PRETENDED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "this torch takes no device" in done.stdout:
        pytest.skip("this torch takes no device that is written in Python")
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout
