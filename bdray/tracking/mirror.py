"""The mirror: the process of a sweep that follows it (`python -m bdray.tracking.mirror`) and tells its driver.

    driver --- stdin: tracking URI; sweep's URI; at the end, a word ------------------------------------------> mirror
           <-- stdout: events "ready"; of the last pass "step", "progress", "trouble" (the server has taken something;
               it has a condition completely; it does not answer); "report" or "refused" ------------------------'

What is delivered the mirror finds in the sweep's folder. However slow or dead the server is, the sweep never waits. The
end of stdin starts a last complete pass, which goes on as long as the driver waits for it. Where the driver was killed,
no word comes before the end, and the pass has a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TextIO

from bdray.credentials import public
from bdray.errors import BdrayError
from bdray.store.file_names import MIRROR_LOCK
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.tracking.experiment import runs_page
from bdray.tracking.following import Follower
from bdray.tracking.messages import DeliveryReport, ReadyInfo, sync_command
from bdray.tracking.server import UnreachableError, probe

_MLFLOW_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves a database, if nothing else is asked for."""

_LOCK_S = 3.0

_STEP_S = 1.0
"""Time between two events that say no more than that the last pass goes on."""

_LAST_TRY_S = 10.0
"""How long the last pass waits for a server that does not answer."""


_ORPHAN_S = 60.0
"""How long the last pass may take where the driver was killed: the next sweep is waiting for its lock."""


class _BusyError(UnreachableError):
    """The mirror of a driver that was killed has not ended yet."""

    @classmethod
    def by(cls, holder: str) -> _BusyError:
        return cls(f"{holder} is still delivering this sweep to MLflow")


class _Mirror:
    """A follower that tells the driver when it is ready, and how its last pass goes."""

    def __init__(self, sweep: Storage, tracking_uri: str, answers: TextIO) -> None:
        self._sweep, self._uri, self._answers = sweep, tracking_uri, answers
        self._follower = Follower(
            sweep, tracking_uri, self._lock, moved=self._step, delivered=self._delivered, log=_log
        )
        self._is_over = threading.Event()
        self._moved, self._next_step = 0.0, math.inf
        self._answer_lock = threading.Lock()

    def _lock(self) -> AbstractContextManager[None]:
        # Another one delivers once it is lost: the driver starts a mirror in this one's place.
        return SweepFolder(self._sweep).locked(MIRROR_LOCK, _LOCK_S, _BusyError.by, lost=lambda: os._exit(1))

    def listen(self) -> None:
        """Starts to wait for the end of stdin."""
        threading.Thread(target=self._read, daemon=True).start()

    def end(self, *, is_orphan: bool = True) -> None:
        """Starts the last pass; what is under way counts as part of it."""
        if self._is_over.is_set():
            return
        self._moved = self._next_step = time.monotonic()
        if self._follower.error:
            self._answer("trouble", {"message": self._follower.error})
        if is_orphan:
            # The main thread may hang in a request: every write is idempotent, so it can be cut anywhere.
            limit = threading.Timer(_ORPHAN_S, os._exit, (0,))
            limit.daemon = True
            limit.start()
        self._is_over.set()

    def start(self) -> None:
        """The first connection, and its answer to the driver.

        Raises:
            TrackingError: the server refuses.
        """
        try:
            probe(self._uri)
            self._follower.connect()
        except UnreachableError as error:
            self._follower.postpone(error)
        self._answer("ready", asdict(self._ready()))

    def run(self) -> None:
        """Until stdin ends; then the last pass."""
        self._follower.run(self._is_over.wait)
        try:
            self._answer("report", asdict(self._last_pass()))
        except BdrayError as error:
            _log(str(error))
            self._answer("refused", {"message": str(error)})
        self._follower.close()

    def _ready(self) -> ReadyInfo:
        delivery = self._follower.delivery
        if delivery is None:
            message = f"{self._follower.error}; it will be delivered later: {sync_command(self._sweep)}"
            return ReadyInfo(message)
        message = f"MLflow: {public(self._uri)}, experiment '{delivery.info.experiment}'"
        number = delivery.destination.experiment_id
        server = public(self._uri).rstrip("/") if self._uri.startswith("http") else _MLFLOW_UI
        return ReadyInfo(message, number, delivery.parent.run_id, server + runs_page(number))

    def _read(self) -> None:
        self.end(is_orphan=not sys.stdin.read().strip())

    def _step(self) -> None:
        """MLflow has taken something: the last pass has all its time again, and the driver hears of it now and then."""
        self._moved = time.monotonic()
        if self._moved >= self._next_step:
            self._next_step = self._moved + _STEP_S
            self._answer("step", {})

    def _delivered(self, condition_id: str) -> None:
        """Before the last pass, which may never come to it."""
        self._answer("delivered", {"condition_id": condition_id})

    def _progress(self, condition_id: str, total: int) -> None:
        self._moved = time.monotonic()
        self._follower.succeeded()
        self._answer("progress", {"condition_id": condition_id, "total": total})

    def _last_pass(self) -> DeliveryReport:
        while True:
            try:
                return self._follower.connect().deliver_all(self._progress)
            except UnreachableError as error:
                self._follower.postpone(error)
                self._answer("trouble", {"message": str(error)})
                patience = _ORPHAN_S if isinstance(error, _BusyError) else _LAST_TRY_S
                if time.monotonic() + self._follower.backoff_s > self._moved + patience:
                    raise
                time.sleep(self._follower.backoff_s)

    def _answer(self, event: str, content: dict[str, object]) -> None:
        with self._answer_lock:
            try:
                print(json.dumps({"event": event, **content}), file=self._answers, flush=True)
            except BrokenPipeError:
                _log("the driver is gone")


def _log(message: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {public(message)}", file=sys.stderr, flush=True)


def _private_stdout() -> TextIO:
    """The pipe to the driver; what libraries print goes to stderr, which is the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Runs the mirror until stdin ends."""
    # The terminal's ctrl-C is for the driver, which then closes stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    parser = argparse.ArgumentParser(prog="bdray.tracking.mirror")
    parser.add_argument("sweep", help="what a list of processes shows; the whole URI comes by stdin")
    parser.parse_args()
    tracking_uri, location = (sys.stdin.readline().rstrip("\n") for _ in range(2))
    mirror = _Mirror(Storage.open(location).patiently(), tracking_uri, answers := _private_stdout())
    signal.signal(signal.SIGTERM, lambda *_: mirror.end())
    mirror.listen()
    try:
        mirror.start()
    except BdrayError as error:
        print(json.dumps({"event": "refused", "message": str(error)}), file=answers, flush=True)
        sys.exit(2)
    mirror.run()


if __name__ == "__main__":
    main()
