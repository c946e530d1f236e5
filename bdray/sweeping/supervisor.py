"""Two processes for a sweep: the one a user starts, the supervisor, runs the one that works, the driver.

Ray ends the process that is connected to it, from C++ and without a word to Python, when its raylet or its GCS is lost.
So the driver is the same command once more, in a session of its own: all that Ray starts stays in that session, by
which it is found when it has lost its parents. The supervisor

- hands stop requests on, and returns the driver's exit status;
- ends whatever the driver leaves behind, however it ended;
- starts the driver again when it was lost: it goes on from the records and checkpoints;
- is watched itself: a driver whose supervisor is gone ends at once, with its session.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from bdray.cluster.failures import MAX_LOST_WITHOUT_PROGRESS, LostProcesses
from bdray.errors import BdrayError, ClusterError
from bdray.processes import is_alive
from bdray.store.file_names import ANSWERS, JOURNAL
from bdray.store.scratch import clear_scratch, scratch_folder
from bdray.store.storage import Storage
from bdray.sweeping.stopping import DRIVER

_LOOK_S = 0.1
"""How often a supervisor looks whether its driver still runs."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SESSION, _SWEEP, _CAUSE = "session", "sweep", "cause"
"""Files of the supervisor's scratch folder, which `DRIVER` names: the driver's session, should both be killed at once;
which sweep it works on; why it cannot go on."""

_ENDED = 64
"""A driver that has come to its end exits with so much more than the command's status: less is a loss, because Ray
ends it with statuses of its own."""

_ENDING_S = 10.0
"""How long what is left of a session may take to be gone."""

STOPPING = (
    "stopping: conditions that run are ended, and go on from their last checkpoint another time; tables, report and"
    " MLflow get what there is, which may take half a minute"
)
"""Said at once when a stop is asked for."""

_notes: Path | None = None
"""In a driver: its supervisor's scratch folder."""


def keep(work: Callable[[], int], say: Callable[[str], None]) -> int:
    """Run `work` in a driver, and again when the driver is lost. Returns in the supervisor only.

    Args:
        work: returns an exit status; catches its own exceptions.
        say: tells the user one line.

    Raises:
        ClusterError: the driver was lost again and again without progress.
        KeyboardInterrupt: a stop was asked for while there was no driver.
    """
    if notes := os.environ.pop(DRIVER, None):
        _be_driver(work, Path(notes))
    clear_scratch(_end_abandoned)
    with scratch_folder() as scratch, _stops_handed_on() as supervisor:
        losses = LostProcesses(lambda _: reported_bytes(scratch))
        while (status := supervisor.run_driver(scratch)) < _ENDED:
            clear_scratch()
            how = f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
            cause = _noted(scratch / _CAUSE) or f"the process connected to Ray {how}"
            if not losses.start_again("sweep"):
                raise ClusterError(f"lost {MAX_LOST_WITHOUT_PROGRESS} times in a row without progress: {cause}")
            say(f"lost: {cause}; started again, every condition goes on from its last checkpoint")
            (scratch / _CAUSE).unlink(missing_ok=True)
        return status - _ENDED


def working_on(sweep: Storage) -> None:
    """By what this sweep's conditions report the supervisor sees whether there is progress between two losses."""
    if _notes is not None:
        # With its secrets: the folder is for its owner's eyes only, and without them nothing is read there.
        (_notes / _SWEEP).write_text(sweep.location)


def lost(cause: str) -> NoReturn:
    """End a driver that cannot go on, so that its supervisor starts another one."""
    if _notes is not None:
        (_notes / _CAUSE).write_text(cause)
    os._exit(1)


def reported_bytes(notes: Path) -> int:
    """How much all conditions of the sweep that a driver noted there have reported: nothing is reported twice, so this
    grows with progress alone."""
    sweep = _noted(notes / _SWEEP)
    try:
        files = Storage.open(sweep).child("conditions").files() if sweep else []
    except BdrayError:
        return 0
    return sum(file.size for file in files if file.path.endswith((JOURNAL, ANSWERS)))


class _Supervisor:
    """Who runs the driver, the present one or the last."""

    def __init__(self) -> None:
        self._driver: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run_driver(self, scratch: Path) -> int:
        """From its start to its end; whatever is left of its session then ends too. Returns its exit status."""
        # A stop that comes now waits until the driver has its own handlers (`stopping.listening`).
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if self._stopped:
            raise KeyboardInterrupt
        command, environment = [sys.executable, *sys.orig_argv[1:]], {**os.environ, DRIVER: str(scratch)}
        # Nothing is written to its stdin, which ends with the supervisor.
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment) as driver:
            self._driver = driver
            (scratch / _SESSION).write_text(str(driver.pid))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            # Not one long wait: a signal that comes just before it would have no handler run until its end.
            while driver.poll() is None:
                time.sleep(_LOOK_S)
            _end_session(driver.pid)
        return driver.returncode

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        """A stop request is the driver's."""
        if not self._stopped:
            # Not by Python's streams, which the signal may have come in the middle of.
            with suppress(OSError):
                os.write(2, f"\n{STOPPING}\n".encode())
        self._stopped = True
        if self._driver is not None:
            self._driver.send_signal(number)


@contextmanager
def _stops_handed_on() -> Iterator[_Supervisor]:
    """A supervisor that hears stop requests within this block."""
    supervisor = _Supervisor()
    before = {number: signal.signal(number, supervisor.hand_on) for number in _SIGNALS}
    try:
        yield supervisor
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for number, handler in before.items():
            signal.signal(number, handler)


def _be_driver(work: Callable[[], int], notes: Path) -> NoReturn:
    global _notes  # noqa: PLW0603 - a process is a driver once and for all
    _notes = notes
    for number in _SIGNALS:
        # They are blocked until `stopping.listening`; after that, all is said.
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    try:
        status = work()
    except BaseException:
        # A defect: the same would happen again.
        sys.excepthook(*sys.exc_info())  # there is one
        status = 1
    sys.exit(_ENDED + status)


def _end_with_supervisor() -> None:
    os.read(0, 1)
    _end_session(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


def _noted(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _end_abandoned(scratch: Path) -> None:
    """What a supervisor and a driver that were killed at once have left."""
    with suppress(OSError, ValueError):
        session = int((scratch / _SESSION).read_text())
        # Should the number be another process's by now, nothing of it is Ray's.
        _end_session(session, only=_is_rays)


def _end_session(leader: int, only: Callable[[psutil.Process], bool] = lambda process: True) -> None:
    """Kill all processes of a session but its leader."""
    deadline = time.monotonic() + _ENDING_S
    while time.monotonic() < deadline:
        left = [process for process in _members(leader) if only(process)]
        if not left:
            return
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        # What they were starting meanwhile, too.
        time.sleep(0.02)


def _members(leader: int) -> Iterator[psutil.Process]:
    for number in psutil.pids():
        with suppress(psutil.Error, OSError):
            if number != leader and os.getsid(number) == leader:
                process = psutil.Process(number)
                if is_alive(process):
                    yield process


def _is_rays(process: psutil.Process) -> bool:
    command = " ".join(process.cmdline()[:3])
    return command.startswith("ray::") or f"{os.sep}ray{os.sep}" in command
