"""What is shown on a pretended GPU (`tests/pretended`), in a process of its own: torch counts its devices once, at the
first backward pass, and whoever has a device more has another `pin_memory`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(file.stem for file in (HERE / "pretended").glob("[a-z]*.py") if file.stem != "conftest")
LONG = ("matrix", "parts")
"""Hold tests that are marked so; `parts` no others, as each of its tests starts a process."""
SELECTED = [
    *(pytest.param(file, "not long", marks=pytest.mark.system) for file in FILES if file != "parts"),
    *(pytest.param(file, "long", marks=(pytest.mark.system, pytest.mark.long)) for file in LONG),
]


@pytest.mark.parametrize(("file", "marked"), SELECTED)
def test_on_a_pretended_gpu(file: str, marked: str, tmp_path: Path) -> None:
    program = [
        sys.executable,
        "-m",
        "pytest",
        f"{HERE}/pretended/{file}.py",
        "-m",
        marked,
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
