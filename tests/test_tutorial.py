"""Pages to be followed, as somebody follows them: every command in order, in an empty folder, with bdray from its
wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from waiting import HANG_S

pytestmark = [pytest.mark.system, pytest.mark.long]

ROOT = Path(__file__).parents[1]
SHIPPED = ("bdray", "search_spaces", "pyproject.toml", "README.md", "LICENSE")


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


@dataclass(frozen=True)
class Page:
    """A page and the folder in which it is followed."""

    text: str
    work: Path
    site: Path

    @property
    def files(self) -> dict[str, str]:
        """What the reader is told to write ("Write `study.yaml`:")."""
        names = re.findall(r"Write `([\w.]+)`:\n", self.text)
        return {name: self.after(f"Write `{name}`:\n\n") for name in names}

    def after(self, words: str) -> str:
        found = re.match(r"((?:    (?!\$).*\n|\n(?=    (?!\$)))+)", self.text.split(words)[1])
        assert found is not None
        return textwrap.dedent(found[1])

    @property
    def commands(self) -> list[str]:
        return re.findall(r"^    \$ (.*)$", self.text, re.MULTILINE)

    def follow(self) -> dict[str, str]:
        """What each command says."""
        environment = {**os.environ, "PYTHONPATH": str(self.site), "COLUMNS": "80", "PYTHONSAFEPATH": ""}
        places = [self.site / "bin", Path(sys.executable).parent, os.environ["PATH"]]
        environment["PATH"] = os.pathsep.join(map(str, places))
        where = subprocess.run(
            ["python", "-c", "import bdray; print(bdray.__file__)"],
            cwd=self.work, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert Path(where.stdout.strip()).is_relative_to(self.site)
        for name, text in self.files.items():
            (self.work / name).write_text(text)
        said: dict[str, str] = {}
        for command in self.commands:
            done = subprocess.run(
                command,
                shell=True,
                cwd=self.work,
                env=environment,
                capture_output=True,
                text=True,
                timeout=HANG_S,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            said[command] = said.get(command, "") + done.stdout
        return said


def page(name: str, folder: Path, site: Path) -> Page:
    (work := folder / "empty").mkdir()
    return Page((ROOT / "docs" / name).read_text(), work, site)


def test_the_tutorial(site: Path, tmp_path: Path) -> None:
    tutorial = page("tutorial.md", tmp_path, site)
    assert len(tutorial.commands) >= 15
    assert set(tutorial.files) == {"my_triggers.py", "study.yaml"}
    said, work = tutorial.follow(), tutorial.work
    assert "8 conditions" in said["bdray sweep study.yaml --dry-run"]
    assert "1 condition at a time" in said["bdray sweep study.yaml --dry-run"]
    assert "study: 8 conditions, done\n" in said["bdray status study"]
    assert "frame" in said["bdray results study --by trigger --md"]
    table = pd.read_csv(work / "runs" / "study" / "results.csv")
    assert dict(table.groupby("role").size()) == {"poisoned": 9, "baseline": 3}
    assert set(table["status"]) == {"finished"}
    assert (work / "runs" / "study" / "report.html").stat().st_size > 50_000


def test_the_week(site: Path, tmp_path: Path) -> None:
    week = page("week.md", tmp_path, site)
    assert set(week.files) == {"make_pictures.py", "my_trigger.py", "my_parts.py", "week.yaml", "evaluate.py"}
    said, runs = week.follow(), week.work / "runs"
    assert "done     12 of 12 conditions" in said["bdray sweep week.yaml --dry-run"]
    late, _ = (
        next(text for command, text in said.items() if f"--name {name}" in command) for name in ("late", "defended")
    )
    assert "4 of them taken over from other sweeps" in late
    assert "late minus week: 8 pairs" in said["bdray compare week late"]
    assert "poison.stamp" in said["bdray compare week late"]
    assert "shrunk" in (runs / "defended" / "results.csv").read_text().splitlines()[0], "what her defence did"
    assert poison_stages_reused(runs / "defended") == [True] * 8, "poisoned models are shared"
    assert r"\footnotesize" in said["bdray results week --by regularizer --latex"]
    assert (week.work / "figures" / "attack_success_column.pdf").stat().st_size > 1000
    for condition in (runs / "late" / "conditions").iterdir():
        assert (condition / "model.safetensors").exists(), "resources.keep_models"
    measured, tabulated = said["python evaluate.py"].split()
    assert measured == tabulated
    read = next(text for command, text in said.items() if command.endswith("bdray report week"))
    assert "small_features" in read
    planned = next(text for command, text in said.items() if "runs/week/space.yaml" in command)
    assert "12 of 12 conditions" in planned
    asked = said["bdray sweep week.yaml --no-dashboard 2>&1 || true"]
    assert "the code of the trigger edge" in asked and "say which it is" in asked
    table = pd.read_csv(runs / "week" / "results.csv")
    assert dict(table.groupby("role").size()) == {"poisoned": 10, "baseline": 4}, "both versions of her trigger"


def poison_stages_reused(sweep: Path) -> list[bool]:
    """Of each condition, whether another one had trained its model before the repair."""
    records = [json.loads(path.read_text()) for path in sweep.glob("conditions/*/record.json")]
    return [record["stages"][0]["reused"] for record in records]
