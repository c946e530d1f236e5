"""The tutorial, as somebody follows it: every command in order, in an empty folder, with bdray from its wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
SHIPPED = ("bdray", "search_spaces", "pyproject.toml", "README.md", "LICENSE")
COMMAND_S = 900


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds bdray as its wheel installs it."""
    work = tmp_path_factory.mktemp("wheel")
    source, site = work / "source", work / "site"
    source.mkdir()
    for name in SHIPPED:
        path, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source / name)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(work)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = work.glob("*.whl")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(wheel)], check=True)
    return site


def blocks() -> list[str]:
    return [textwrap.dedent(block) for block in re.findall(r"(?<=\n\n)((?:    .*\n|\n(?=    ))+)", PAGE)]


def files() -> dict[str, str]:
    """What the reader is told to write ("Write `study.yaml`:")."""
    return {
        name: text for name in re.findall(r"Write `([\w.]+)`:\n", PAGE) for text in [_after(f"Write `{name}`:\n\n")]
    }


def _after(words: str) -> str:
    found = re.match(r"((?:    .*\n|\n(?=    ))+)", PAGE.split(words)[1])
    assert found is not None
    return textwrap.dedent(found[1])


def commands() -> list[str]:
    lines = [line for block in blocks() for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def test_every_command_in_order_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    assert len(commands()) >= 15
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "80", "PYTHONSAFEPATH": ""}
    environment["PATH"] = f"{site / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    work = tmp_path / "empty"
    work.mkdir()
    where = subprocess.run(
        ["python", "-c", "import bdray; print(bdray.__file__)"],
        cwd=work, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(site)
    assert set(files()) == {"my_triggers.py", "study.yaml"}
    for name, text in files().items():
        (work / name).write_text(text)
    said: dict[str, str] = {}
    for command in commands():
        done = subprocess.run(
            command,
            shell=True,
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command] = said.get(command, "") + done.stdout
    assert "8 conditions" in said["bdray sweep study.yaml --dry-run"]
    assert "1 condition at a time" in said["bdray sweep study.yaml --dry-run"]
    assert "study: 8 conditions, done\n" in said["bdray status study"]
    assert "frame" in said["bdray results study --by trigger --md"]
    table = pd.read_csv(work / "runs" / "study" / "results.csv")
    assert dict(table.groupby("role").size()) == {"poisoned": 9, "baseline": 3}
    assert set(table["status"]) == {"finished"}
    assert (work / "runs" / "study" / "report.html").stat().st_size > 50_000
