"""Temporary folders: of processes that live, that end, and that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import HANG_S

from bdray.store.scratch import clear_scratch, scratch_folder

OWNER = """
import os, signal, sys
from bdray.store.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "note").write_text("mine")
    print(folder, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_scratch_folder_is_its_owners_alone_and_goes_with_the_block(temporary: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "note").write_text("mine")
    with pytest.raises(RuntimeError), scratch_folder():
        raise RuntimeError
    assert not list(temporary.iterdir())


def test_what_a_killed_process_leaves_is_removed_but_nothing_of_the_living(temporary: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    shown: list[str] = []
    with scratch_folder() as mine:
        clear_scratch(lambda gone: shown.append((gone / "note").read_text()))
        assert (shown, folder.exists(), mine.exists()) == ([], True, True)
        owner.stdin.close()
        assert owner.wait(HANG_S) == -signal.SIGKILL
        clear_scratch(lambda gone: shown.append((gone / "note").read_text()))
        assert (shown, folder.exists(), mine.exists()) == (["mine"], False, True)
    owner.stdout.close()
    assert not list(temporary.iterdir())
