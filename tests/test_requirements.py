"""Versions older than declared, as installed metadata say them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdray.requirements import outdated

ROOT = Path(__file__).parents[1]
DECLARED = (
    "numpy>=1.26",
    "pydantic>=2.11",
    "ray[default,tune]>=2.57",
    "cmaes>=0.11; extra == 'cmaes'",
    "ruff>=0.9; extra == 'test'",
)


@pytest.fixture(autouse=True)
def _looked_at_anew() -> Iterator[None]:
    """A process looks once at what is installed."""
    outdated.cache_clear()
    yield
    outdated.cache_clear()


def install(folder: Path, name: str, version: str, *requires: str) -> None:
    """A distribution's metadata, found before any other's of its name."""
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({"pydantic": "2.11"}, {}),
        ({"pydantic": "2.12.0rc1", "ray": "2.57.0"}, {}),
        ({"pydantic": "2.10.6"}, {"pydantic": "2.10.6, and bdray needs >=2.11"}),
        (
            {"pydantic": "2.9", "ray": "2.56.1"},
            {"pydantic": "2.9, and bdray needs >=2.11", "ray": "2.56.1, and bdray needs >=2.57"},
        ),
        ({"cmaes": "0.10"}, {"cmaes": "0.10, and bdray needs >=0.11"}),
        ({"ruff": "0.1"}, {}),
    ],
)
def test_what_is_older_than_declared_is_named(
    installed: dict[str, str], said: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "bdray", "9", *DECLARED)
    for name, version in installed.items():
        install(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    assert outdated() == said


def test_this_installation_is_as_new_as_declared() -> None:
    assert outdated() == {}


def bdray(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-m", "bdray", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.system
def test_commands_and_the_doctor_say_it_in_one_line(tmp_path: Path) -> None:
    install(tmp_path, "bdray", "9", *DECLARED)
    install(tmp_path, "ray", "2.56.0")
    warning = "warning: ray is 2.56.0, and bdray needs >=2.57: pip install --upgrade ray\n"
    listed = bdray(tmp_path, "list", "triggers")
    assert (listed.returncode, listed.stderr) == (0, warning)
    doctor = bdray(tmp_path, "doctor")
    assert (doctor.returncode, doctor.stderr) == (1, warning)
    assert "  ray            2.56.0, and bdray needs >=2.57  (missing)\n" in doctor.stdout
    assert bdray(tmp_path, "--help").stderr == ""


def test_what_an_older_version_breaks_is_no_traceback(tmp_path: Path) -> None:
    """As pydantic 2.10 does, with which no component can be defined."""
    install(tmp_path, "bdray", "9", *DECLARED)
    install(tmp_path, "pydantic", "2.10.0")
    (tmp_path / "pydantic.py").write_text(
        "raise RuntimeError('`Grid` is not fully defined\\n\\nFor further information')\n"
    )
    listed = bdray(tmp_path, "list", "triggers")
    assert (listed.returncode, listed.stderr.splitlines()) == (
        2,
        [
            "warning: pydantic is 2.10.0, and bdray needs >=2.11: pip install --upgrade pydantic",
            "error: with these older versions: RuntimeError: `Grid` is not fully defined",
        ],
    )
