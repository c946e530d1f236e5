"""A supervisor and its driver: real processes, killed in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from pyarrow.fs import LocalFileSystem
from waiting import HANG_S, until

from bdray.store.file_systems import RemoteFiles
from bdray.store.storage import Storage
from bdray.sweeping import supervisor
from bdray.sweeping.supervisor import STOPPING

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, subprocess, sys, time
from pathlib import Path
import psutil
from bdray.cli import status_of
from bdray.store.scratch import scratch_folder
from bdray.store.storage import Storage
from bdray.sweeping import supervisor, stopping
from rich.console import Console

console, here = Console(), Path.cwd()

def leave_something():
    # As Ray's workers do: a process group of its own, and another title.
    process = subprocess.Popen(["bash", "-c", "exec -a ray::Idle sleep 3600"], process_group=0)
    while "ray::Idle" not in psutil.Process(process.pid).cmdline():
        time.sleep(0.01)

def tries():
    with (here / "tries").open("a") as file:
        file.write("x")
    return len((here / "tries").read_text())

def work():
    supervisor.working_on(Storage.open(here))
    count = tries()
WORK
    return 7

def driven():
    def listening():
        with stopping.listening():
            return work()
    return status_of(listening, "the command", console)

sys.exit(status_of(lambda: supervisor.keep(driven, print), "the command", console))
"""
DIE = "os.kill(os.getpid(), signal.SIGKILL)"


class Program:
    """Runs `keep` with some work in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, list[subprocess.Popen[str]]()
        (folder / "tmp").mkdir()

    def start(self, work: str) -> subprocess.Popen[str]:
        lines = "".join(f"    {line}\n" for line in work.strip().splitlines())
        self.started.append(
            subprocess.Popen(
                [sys.executable, "-u", "-c", PROGRAM.replace("WORK\n", lines)],
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder / "tmp")},
            )
        )
        return self.started[-1]

    def run(self, work: str) -> tuple[int, str]:
        process = self.start(work)
        output, _ = process.communicate(timeout=HANG_S)
        return process.returncode, output

    @property
    def tries(self) -> int:
        return len((self.folder / "tries").read_text())

    def left(self) -> list[int]:
        """Processes that work in the folder."""
        found = []
        for process in psutil.process_iter():
            try:
                is_here = process.cwd() == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            if is_here:
                found.append(process.pid)
        return found


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    for number in program.left():
        os.kill(number, signal.SIGKILL)
    for process in program.started:
        process.communicate()


def test_the_drivers_status_is_the_keepers_and_nothing_is_left(program: Program) -> None:
    assert program.run("leave_something()\nprint('worked')") == (7, "worked\n")
    assert program.left() == []
    assert list((program.folder / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (DIE, "the process connected to Ray was killed by SIGKILL"),
        ("os._exit(1)", "the process connected to Ray ended with status 1"),
        ("supervisor.lost('Ray\\'s GCS has ended')", "Ray's GCS has ended"),
    ],
)
def test_a_lost_driver_is_started_again_when_all_of_it_is_gone(program: Program, end: str, cause: str) -> None:
    scratch = "folder = scratch_folder()\nfolder.__enter__()"
    status, output = program.run(f"leave_something()\n{scratch}\nif count < 3: {end}\nfolder.__exit__(*[None] * 3)")
    again = f"lost: {cause}; started again, every condition goes on from its last checkpoint\n"
    assert (status, output) == (7, 2 * again)
    assert program.left() == []
    assert list((program.folder / "tmp").iterdir()) == []


def test_three_losses_without_progress_are_the_end(program: Program) -> None:
    status, output = program.run(DIE)
    assert (status, program.tries) == (1, 3)
    assert "error: lost 3 times in a row without progress: the process connected to Ray was" in output


def test_progress_between_losses_starts_the_count_anew(program: Program) -> None:
    journal = "folder = here / 'conditions' / 'a'; folder.mkdir(parents=True, exist_ok=True)"
    more = "(folder / 'journal.jsonl').write_text('x' * count)"
    assert program.run(f"{journal}\nif count < 6:\n    {more}\n    {DIE}")[0] == 7
    assert program.tries == 6


@pytest.mark.parametrize("reported", ["conditions/a/journal.jsonl", "conditions/a/answers.json"])
def test_progress_is_seen_in_a_storage_with_a_password_and_where_models_are_only_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: str
) -> None:
    """Found: the supervisor was left a URI with `***` for the password, and counted every loss as one without
    progress."""
    (notes := tmp_path / "notes").mkdir()
    monkeypatch.setattr(supervisor, "_notes", notes)
    monkeypatch.setattr(
        "bdray.store.storage.open_remote",
        lambda uri, _: RemoteFiles(LocalFileSystem(), f"{tmp_path}{urlsplit(uri).path}"),
    )
    sweep = Storage.open("s3://user:secret@bucket/sweep")
    supervisor.working_on(sweep)
    sweep.write_atomic(reported, "x")
    assert supervisor.reported_bytes(notes) == 1


def test_a_defect_is_no_loss(program: Program) -> None:
    status, output = program.run("raise ZeroDivisionError")
    assert (status, program.tries) == (1, 1)
    assert output.count("ZeroDivisionError\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_the_drivers(program: Program, number: signal.Signals) -> None:
    # Not one long sleep: Python runs no handler for a signal that comes between its last look and the system's sleep.
    process = program.start("leave_something()\nprint('working')\nwhile True:\n    time.sleep(0.1)")
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    said = f"\n{STOPPING}\ninterrupted; continue with: the command\n"
    assert process.communicate(timeout=HANG_S)[0] == said, "at once, before the driver has ended"
    assert (process.returncode, program.tries, program.left()) == (130, 1, [])


def test_a_driver_ends_with_its_keeper(program: Program) -> None:
    process = program.start("leave_something()\nprint('working')\ntime.sleep(3600)")
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.kill()
    process.wait()
    until(lambda: program.left() == [])
    assert len(list((program.folder / "tmp").iterdir())) == 2
    status, output = program.run("pass")
    assert status == 7, output
    assert list((program.folder / "tmp").iterdir()) == []


def test_what_is_left_when_both_are_killed_is_ended_by_the_next(program: Program) -> None:
    process = program.start("leave_something()\nprint(os.getpid())\ntime.sleep(3600)")
    assert process.stdout is not None
    driver = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(driver, signal.SIGKILL)
    process.kill()
    process.wait()
    until(lambda: len(program.left()) == 1)
    status, output = program.run("pass")
    assert status == 7, output
    assert program.left() == []
    assert list((program.folder / "tmp").iterdir()) == []
