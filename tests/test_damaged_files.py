"""Each file of a real sweep, damaged in each way, and the same command typed again: as the table of the documentation
says (`benchmarks/damages.py`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from damaging import DAMAGES, damage

from bdray.tracking import is_tracked
from benchmarks.damages import TABLE, markdown

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[1]
SPACE = """\
name: damaged
seeds: [0]
fixed:
  data: {name: digits, image_size: 8, train_limit: 60, test_limit: 20}
  model: {name: resnet8}
  train: {epochs: 2, batch_size: 32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1}
parameters:
  trigger.name: {values: [pixel, patch]}
"""
SHORT = ("cut",)
"""Kinds of damage of the short form."""
KINDS = [pytest.param(how, marks=() if how in SHORT else pytest.mark.long) for how in DAMAGES]
WRITTEN = ("progress.json", "results.csv", "results.parquet", "report.html", ".lock", "mirror.lock", "mirror.log")


def typed(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bdray.sweep", "damaged.yaml", "--no-dashboard", "--num-cpus", "1"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BDRAY_CACHE": str(folder.parent / "cache"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished sweep."""
    folder = tmp_path_factory.mktemp("damaged") / "done"
    folder.mkdir()
    (folder / "damaged.yaml").write_text(SPACE)
    first = typed(folder)
    assert first.returncode == 0, first.stdout + first.stderr
    return folder


@pytest.fixture
def sweep(done: Path) -> Iterator[Path]:
    """A copy of it: the folder in which the command is typed."""
    copy = done.with_name("copy")
    shutil.copytree(done, copy)
    yield copy
    shutil.rmtree(copy)


def records(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (folder / "runs/damaged/conditions").glob("*/record.json")}


def test_each_file_of_a_sweep_has_a_row(done: Path) -> None:
    """Whoever adds a kind of file says what becomes of it."""
    runs = done / "runs"
    kinds = set[str]()
    for file in (path.relative_to(runs) for path in runs.rglob("*") if path.is_file()):
        place, *rest = file.parts
        if place == "damaged" and rest[0] in ("conditions", "stages"):
            kinds.add(f"{rest[0]}/{'ID' if rest[0] == 'conditions' else 'FINGERPRINT'}/{rest[2]}")
        elif place != "mlflow-artifacts" and file.name != "mlflow.db.lock":
            kinds.add("/".join(rest) or place)
    assert kinds <= TABLE.keys()
    assert {cell for cells in TABLE.values() for cell in map(len, TABLE.values())} == {len(DAMAGES)}


def test_the_documentation_has_the_table() -> None:
    assert markdown() in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("how", KINDS)
def test_what_is_written_anew_each_time(sweep: Path, how: str) -> None:
    folder, before = sweep / "runs" / "damaged", records(sweep)
    (picture, *_) = sorted(folder.glob("conditions/*/preview.png"))
    for name in (*WRITTEN, ".delivered", "sweep.json"):
        damage(folder / name, how)
    damage(picture, how)
    kept = picture.read_bytes() if picture.exists() else None
    again = typed(sweep)
    assert again.returncode == 0, again.stdout + again.stderr
    assert records(sweep) == before, "nothing is computed"
    for name in (*WRITTEN, ".delivered", "sweep.json"):
        is_said = f"damaged file {folder / name}: " in again.stderr
        assert is_said == TABLE[name][DAMAGES.index(how)].startswith("said"), (name, again.stderr)
        assert (folder / name).stat().st_size > 0, "there again"
    assert (picture.read_bytes() if picture.exists() else None) == kept
    last = typed(sweep)
    assert (last.returncode, last.stderr) == (0, "")


@pytest.mark.parametrize("how", KINDS)
def test_the_space_and_the_database(sweep: Path, how: str) -> None:
    folder, before = sweep / "runs" / "damaged", records(sweep)
    space = (folder / "space.yaml").read_text()
    damage(folder / "space.yaml", how)
    damage(sweep / "runs" / "mlflow.db", how)
    again = typed(sweep)
    assert records(sweep) == before, "nothing is computed"
    assert (folder / "space.yaml").read_text() == space, "what was decided is known"
    if how in ("cut", "empty"):
        assert f"damaged file {folder / 'space.yaml'}: " in again.stderr
        assert "what was decided is known from sweep.json" in again.stderr
    if how == "cut":
        assert again.returncode == 3
        assert "the file is damaged" in again.stdout and "move it away" in again.stdout, again.stdout
        (sweep / "runs" / "mlflow.db").rename(sweep / "mlflow.db.damaged")
        again = typed(sweep)
    assert again.returncode in ((0, 3) if how == "bit" else (0,)), again.stdout + again.stderr
    assert "Traceback" not in again.stderr
    assert how == "bit" or is_tracked(f"sqlite:///{sweep}/runs/mlflow.db", "bdray-damaged"), "filled again"
