from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from bdray.progress import Bar

LONG_WORK = """
import time
from rich.console import Console
from bdray import progress
from bdray.progress import Bar
progress.LINE_SECONDS = 1e9
with Bar(Console(stderr=True)) as bar:
    for done in range(1000, 5000, 1000):
        bar.show("decoding digits", done, 4000, line=f"decoding digits: {done:,} of 4,000")
        time.sleep(0.2)
"""


def test_short_work_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with Bar(Console(stderr=True), quiet_seconds=1e9) as bar:
        for done in range(1, 11):
            bar.show("decoding digits", done, 10, line="some")
    assert capfd.readouterr() == ("", "")


def test_plain_lines_without_a_terminal() -> None:
    result = subprocess.run([sys.executable, "-c", LONG_WORK], capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert result.stderr == "decoding digits: 1,000 of 4,000\ndecoding digits: 4,000 of 4,000\n"


def test_a_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", LONG_WORK], stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert b"decoding digits" in written
    assert "━".encode() in written
    assert b"2000/4000" in written


def test_a_line_below_the_bar_loses_nothing_in_a_narrow_terminal() -> None:
    """Found: of a long name's line the end was cut off, and with it how far the condition is."""
    shown = io.StringIO()
    with Bar(Console(file=shown, width=60, force_terminal=True, color_system=None)) as bar:
        bar.show("sweep", 1, 2, below=["patch-rate=0.05-logit_squeezing-s0-e3128e: finetune, epoch 1 of 2 done"])
    lines = [line.strip() for line in shown.getvalue().splitlines()]
    assert "patch-rate=0.05-logit_squeezing-s0-e3128e: finetune, epoch" in lines
    assert "1 of 2 done" in " ".join(lines)
