"""Two processes for a sweep: the one a user starts keeps the one that works, the driver.

Ray ends the process that is connected to it, from C++ and without a word to Python, when its raylet or its GCS is lost.
So the driver is a child, forked before anything heavy is imported, in a session of its own: all that Ray starts stays
in that session, by which it is found when it has lost its parents. The supervisor

- hands stop requests on, and returns the driver's exit status;
- ends whatever the driver leaves behind, however it ended;
- starts the driver again when it was lost: it goes on from the records and checkpoints;
- is watched itself: a driver whose supervisor is gone ends at once, with its session.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from bdray.cluster.failures import LOSSES_WITHOUT_PROGRESS, Losses
from bdray.errors import BdrayError, ClusterError
from bdray.processes import is_alive
from bdray.store.journal import JOURNAL
from bdray.store.scratch import clear_scratch, scratch_folder
from bdray.store.storage import Storage

_LOOK_S = 0.1
"""How often a supervisor looks whether its driver still runs."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SESSION = "session"
"""File of the scratch folder: the driver's session, should supervisor and driver be killed at once."""

_ENDING_S = 10.0
"""How long what is left of a session may take to be gone."""

STOPPING = (
    "stopping: conditions that run are ended, and go on from their last checkpoint another time; tables, report and"
    " MLflow get what there is, which may take half a minute"
)
"""Said at once when a stop is asked for."""

_news: int | None = None
"""In a driver: where it tells its supervisor something."""


def keep(work: Callable[[], int], say: Callable[[str], None]) -> int:
    """Run `work` in a driver, and again when the driver is lost. Returns in the supervisor only.

    Args:
        work: returns an exit status; catches its own exceptions.
        say: tells the user one line.

    Raises:
        ClusterError: the driver was lost again and again without progress.
        KeyboardInterrupt: a stop was asked for while there was no driver.
    """
    if not hasattr(os, "fork"):
        return work()
    clear_scratch(_end_abandoned)
    supervisor = _Keeper()
    losses = Losses(lambda _: _journal_bytes(supervisor.sweep))
    with scratch_folder() as scratch, supervisor.handing_on():
        while True:
            supervisor.run_driver(work, scratch)
            clear_scratch()
            if supervisor.status is not None:
                return supervisor.status
            if not losses.start_again("sweep"):
                raise ClusterError(
                    f"lost {LOSSES_WITHOUT_PROGRESS} times in a row without progress: {supervisor.cause}"
                )
            say(f"lost: {supervisor.cause}; started again, every condition goes on from its last checkpoint")


def working_on(sweep: Storage) -> None:
    """By this sweep's journals the supervisor sees whether there is progress between two losses."""
    _tell(f"sweep {sweep.uri}")


def lost(cause: str) -> NoReturn:
    """End a driver that cannot go on, so that its supervisor starts another one."""
    _tell(f"lost {cause}")
    os._exit(1)


@dataclass
class _Keeper:
    """What is known of the driver, the present one or the last."""

    driver: int = 0
    status: int | None = None
    cause: str = ""
    sweep: str = ""
    stopped: bool = False

    @contextmanager
    def handing_on(self) -> Iterator[None]:
        """Within this block stop requests are the driver's."""
        before = {number: signal.signal(number, self._hand_on) for number in _SIGNALS}
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            for number, handler in before.items():
                signal.signal(number, handler)

    def run_driver(self, work: Callable[[], int], scratch: Path) -> None:
        """From fork to end; whatever is left of its session then ends too."""
        # A stop that comes now waits until the driver has its own handlers (`stopping.listening`).
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if self.stopped:
            raise KeyboardInterrupt
        alive, life = os.pipe()
        news, pen = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        driver = os.fork()
        if driver == 0:
            os.close(life)
            os.close(news)
            _be_driver(work, alive, pen)
        os.close(alive)
        os.close(pen)
        (scratch / _SESSION).write_text(str(driver))
        self.driver = driver
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        with os.fdopen(news) as told:
            # Not yet reaped, so that its number stays its session's. Not one long wait: a signal that comes just before
            # it would have no handler run until its end.
            while os.waitid(os.P_PID, driver, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                time.sleep(_LOOK_S)
            self.driver = 0
            _end_session(driver)
            _, ended = os.waitpid(driver, 0)
            os.set_blocking(news, False)
            self._read(told.read() or "", ended)
        os.close(life)

    def _read(self, told: str, ended: int) -> None:
        said = dict(line.split(" ", 1) for line in told.splitlines())
        self.status = int(said["status"]) if "status" in said else None
        self.sweep = said.get("sweep", self.sweep)
        code = os.waitstatus_to_exitcode(ended)
        how = f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        self.cause = said.get("lost", f"the process connected to Ray {how}")

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if not self.stopped:
            # Not by Python's streams, which the signal may have come in the middle of.
            with suppress(OSError):
                os.write(2, f"\n{STOPPING}\n".encode())
        self.stopped = True
        if self.driver:
            with suppress(ProcessLookupError):
                os.kill(self.driver, number)


def _be_driver(work: Callable[[], int], alive: int, pen: int) -> NoReturn:
    global _news  # noqa: PLW0603 - a process is a driver once and for all
    _news = pen
    os.setsid()
    threading.Thread(target=_end_with_keeper, args=(alive,), daemon=True).start()
    try:
        status = work()
    except BaseException:
        # A defect: the same would happen again.
        _tell("status 1")
        raise
    _tell(f"status {status}")
    sys.exit(status)


def _end_with_keeper(alive: int) -> None:
    os.read(alive, 1)
    _end_session(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


def _tell(line: str) -> None:
    if _news is not None:
        with suppress(OSError):
            os.write(_news, f"{line}\n".encode())


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


def _journal_bytes(sweep: str) -> int:
    """How much all conditions have reported: nothing is reported twice, so this grows with progress alone."""
    try:
        files = Storage.open(sweep).child("conditions").files() if sweep else []
    except BdrayError:
        return 0
    return sum(file.size for file in files if file.path.endswith(JOURNAL))
