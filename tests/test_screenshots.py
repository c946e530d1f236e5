"""What `make screenshots` takes pictures with: a real terminal and a real browser, where there are some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from benchmarks.browser import CHROMIUM, Browser, complaints_of, save
from benchmarks.tmux import TMUX, Terminal

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]


def test_without_chromium_and_tmux_it_says_so_and_skips(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.screenshots", "--output", str(tmp_path / "images")]
    environment = {"PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "skipped: no chromium and no tmux on the PATH, without which no picture can be taken\n"
    assert not (tmp_path / "images").exists()


def test_its_pictures_are_small_and_tell_nothing_of_a_machine() -> None:
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert {path.suffix for path in pictures} == {".png", ".svg"}
    assert sum(path.stat().st_size for path in pictures) < 1_500_000
    for path in pictures:
        if path.suffix == ".svg":
            text = path.read_text(encoding="utf-8")
            assert "@font-face" not in text, "it would be fetched"
            assert "Traceback" not in text
        else:
            with Image.open(path) as picture:
                assert picture.mode == "P"


@pytest.mark.skipif(TMUX is None, reason="no tmux")
@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.system
def test_a_terminal_is_as_wide_as_it_says_and_keeps_its_colours(tmp_path: Path, columns: int) -> None:
    with Terminal(tmp_path, columns, 10, {}) as terminal:
        before = terminal.shown()
        terminal.type("tput cols; printf '\\033[31mred%s\\033[0m\\n' dish")
        terminal.wait(lambda: terminal.is_idle() and terminal.shown() != before, 60)
        assert str(columns) in terminal.shown().splitlines()
        picture = terminal.picture("a & b")
    assert "reddish" in picture
    assert "fill: #cc555a" in picture, "rich's red"
    assert ElementTree.fromstring(picture).tag.endswith("svg"), "well-formed, whatever the title holds"
    assert "@font-face" not in picture


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.system
def test_what_a_page_does_wrong_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<body>hello<img src='http://example.com/a.png'><script>console.error('oh', 1); missing()</script></body>"
    )
    with Browser() as browser:
        opened = browser.open(page.as_uri(), width=300, height=200, scheme="dark")
        opened.wait_for_text("hello")
        assert opened.run("matchMedia('(prefers-color-scheme: dark)').matches")
        browser.hear(1)
        said = complaints_of(opened.seen)
        opened.replace("hello", "goodbye")
        assert opened.run("document.body.innerText.trim()") == "goodbye"
        save(opened.picture(), tmp_path / "page.png")
        opened.close()
    assert "console: oh 1" in said
    assert any("missing is not defined" in line for line in said)
    assert "a request leaves: http://example.com/a.png" in said
    assert complaints_of(opened.seen, ["oh", "missing", "example.com"]) == [said[-1]], "a request is never allowed"
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (300, 200)
