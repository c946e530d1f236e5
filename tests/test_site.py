"""The documentation as a site, and the notebook."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from waiting import HANG_S

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]


@pytest.mark.system
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    site, docs = tmp_path / "site", ROOT / "docs"
    pages = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")} - {Path("404")}
    assert pages == {path.relative_to(docs).with_suffix("") for path in docs.rglob("*.md")}
    fetched = [path.name for path in site.rglob("*.html") if 'src="http' in path.read_text(encoding="utf-8")]
    assert fetched == []


def test_every_page_can_be_found() -> None:
    nav = yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    docs = ROOT / "docs"
    assert [path for path in docs.rglob("*.md") if str(path.relative_to(docs)) not in nav] == []


@pytest.mark.system
def test_the_notebook_runs_as_it_stands(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "example.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before.get("PYTHONPATH")]))
    # `!python` finds the interpreter that runs the notebook.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before["PATH"]])
    try:
        NotebookClient(notebook, timeout=HANG_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    (one,) = [output["data"]["text/plain"] for output in outputs if "'finished'" in str(output.get("data"))]
    assert one.startswith("('finished', 0.")
    table = next(output["data"]["text/html"] for output in outputs if "asr_floor_before" in str(output.get("data")))
    assert table.count("<tr>") == 3, "two poisoned conditions and their baseline, below the head"
    assert (tmp_path / "runs" / "study" / "report.html").exists()
