"""Processes that bear the names of Ray's, and what a library writes to stderr."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import HANG_S

from bdray.cluster.daemons import daemons_watched, stderr_in

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "cause"), [("raylet", "Ray's raylet has ended"), ("gcs_server", "Ray's GCS has ended")]
)
def test_a_daemon_that_is_lost_is_noticed_and_one_that_was_ended_is_not(tmp_path: Path, name: str, cause: str) -> None:
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / name)
    for is_watched in (False, True):
        daemon = subprocess.Popen([program, "600"])
        heard, told = list[str](), threading.Event()

        def lost(cause: str, heard: list[str] = heard, told: threading.Event = told) -> None:
            heard.append(cause)
            told.set()

        with daemons_watched(lost):
            if is_watched:
                daemon.kill()
                assert told.wait(HANG_S)
        daemon.kill()
        daemon.wait()
        assert heard == [cause] * is_watched


def test_only_what_bdray_logs_reaches_the_terminal(tmp_path: Path) -> None:
    program = (
        "import logging, os, sys; from pathlib import Path; from bdray.cluster.daemons import stderr_in\n"
        "for words in ('', 'a page of it\\n'):\n"
        "    with stderr_in(Path('ray.log')):\n"
        "        os.write(2, words.encode())\n"
        "        logging.getLogger('bdray').warning('ours')\n"
        "    print(Path('ray.log').exists(), flush=True)\n"
        "os.write(2, b'after\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.stdout, done.stderr) == ("False\nTrue\n", "ours\nours\nafter\n")
    assert (tmp_path / "ray.log").read_text() == "a page of it\n"


def test_a_program_that_logs_by_itself_is_left_to_it(caplog: pytest.LogCaptureFixture) -> None:
    with stderr_in(None):
        assert not logging.getLogger("bdray").handlers
        logging.getLogger("bdray").warning("ours")
    assert caplog.messages == ["ours"]
