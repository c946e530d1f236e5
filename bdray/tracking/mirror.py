"""The mirror: a process beside a sweep that delivers its files to MLflow (`python -m bdray.tracking.mirror`).

    driver --- stdin: tracking URI; sweep's URI; a condition id a line; "close SECONDS"; end ---> mirror ---> MLflow
           <-- stdout: events "ready", "step" and "progress" of the last pass (the server has taken something; it has a
               condition completely), "report" -----------------------------------------------------------------'

Starts and ends are told by the driver; the epochs between them the mirror sees itself, in the files of the conditions
that run. However slow or dead the server is, the sweep never waits: ids only queue up here. The end of stdin, which
also comes when the driver is killed, starts a last complete pass. It goes on as long as the server takes anything:
SECONDS is how long it may take nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import signal
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import NamedTuple, TextIO

from bdray.credentials import public
from bdray.errors import BdrayError, StorageError, StorageNotFoundError, TrackingError
from bdray.store.journal import JOURNAL
from bdray.store.storage import Storage
from bdray.store.sweep_folder import MIRROR_LOCK, RECORD, SweepFolder
from bdray.tracking.delivery import Delivery
from bdray.tracking.parent import runs_page
from bdray.tracking.report import DeliveryReport, ReadyInfo, sync_command, undelivered
from bdray.tracking.server import GoneError, UnreachableError, probe

_MLFLOW_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves a database, if nothing else is asked for."""

_BACKOFF_S = (0.5, 5.0)
_LOCK_S = 3.0

_LOOK_S, _LOOK_REMOTE_S = 2.0, 15.0
"""How often the journals of running conditions are looked at: on a disk, and where each look is a request."""

_STEP_S = 1.0
"""Time between two events that say no more than that the last pass goes on."""

_LAST_TRY_S = 10.0
"""How long the last pass waits for a server that does not answer."""


class _Ending(NamedTuple):
    """How long the last pass may take: with nothing taken by the server, and in all."""

    stall_s: float
    limit_s: float = math.inf


_ORPHAN = _Ending(60.0, 60.0)
"""Of a mirror whose driver was killed: the next sweep is waiting for its lock."""


class _BusyError(UnreachableError):
    """The mirror of a driver that was killed has not ended yet."""

    @classmethod
    def by(cls, holder: str) -> _BusyError:
        return cls(f"{holder} is still delivering this sweep to MLflow")


class _MirrorLoop:
    """Keeps the ids that wait for delivery, and delivers them whenever the server answers."""

    def __init__(self, sweep: Storage, tracking_uri: str, answers: TextIO) -> None:
        self._sweep, self._uri, self._answers = sweep, tracking_uri, answers
        self._inbox: queue.Queue[str | _Ending] = queue.Queue()
        self._waiting: dict[str, None] = {}
        self._delivered: set[str] = set()
        self._running: dict[str, object] = {}
        self._look_s = _LOOK_S if sweep.is_local else _LOOK_REMOTE_S
        self._next_look = 0.0
        self._lock: ExitStack | None = None
        self._delivery: Delivery | None = None
        self._backoff, self._next_try = _BACKOFF_S[0], 0.0
        self._error: str | None = None
        self._moved, self._next_step = 0.0, math.inf
        self._answer_lock = threading.Lock()

    def listen(self) -> None:
        """Starts to read stdin; its end becomes the time the last pass may take."""
        threading.Thread(target=self._read, daemon=True).start()

    def stop(self) -> None:
        """Starts the last pass now."""
        self._inbox.put(_ORPHAN)

    def start(self) -> None:
        """The first connection, and its answer to the driver.

        Raises:
            TrackingError: the server refuses.
        """
        try:
            probe(self._uri)
            self._connect()
        except UnreachableError as error:
            self._postpone(error)
        self._answer("ready", asdict(self._ready()))

    def run(self) -> None:
        """Until stdin ends; then the last pass."""
        while True:
            ending = self._take()
            if ending is not None:
                self._finish(ending)
                if self._lock is not None:
                    self._lock.close()
                return
            if self._running and time.monotonic() >= self._next_look:
                self._look()
            if time.monotonic() >= self._next_try:
                self._deliver_waiting()

    def _ready(self) -> ReadyInfo:
        if self._delivery is None:
            message = f"{self._error}; it will be delivered later: {sync_command(self._sweep)}"
            return ReadyInfo(False, message)
        message = f"MLflow: {public(self._uri)}, experiment '{self._delivery.info.experiment}'"
        number = self._delivery.experiment_id
        server = public(self._uri).rstrip("/") if self._uri.startswith("http") else _MLFLOW_UI
        return ReadyInfo(True, message, number, self._delivery.parent_run_id, server + runs_page(number))

    def _read(self) -> None:
        ending = _ORPHAN
        for line in sys.stdin:
            word, _, rest = line.strip().partition(" ")
            if word == "close":
                ending = _Ending(float(rest))
            elif word:
                self._inbox.put(word)
        self._inbox.put(ending)

    def _take(self) -> _Ending | None:
        """Waits for work; the time of the last pass when there is to be no more."""
        idle = self._delivery is not None and not self._waiting
        times = [] if idle else [self._next_try]
        times += [self._next_look] if self._running else []
        wait = max(0.0, min(times) - time.monotonic()) if times else None
        try:
            item = self._inbox.get(timeout=wait)
            while True:
                if isinstance(item, _Ending):
                    return item
                self._hear_of(item)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return None

    def _hear_of(self, condition_id: str) -> None:
        """A condition that is heard of for the first time has most likely just begun: there is nothing to deliver
        before it is seen to have written something."""
        if condition_id in self._running or condition_id in self._delivered:
            self._waiting[condition_id] = None
        else:
            self._running[condition_id] = None

    def _look(self) -> None:
        """Conditions whose journals have changed since the last look wait for delivery."""
        for condition_id, seen in self._running.items():
            mark = self._mark(condition_id)
            if mark != seen:
                self._running[condition_id] = mark
                self._waiting[condition_id] = None
        self._next_look = time.monotonic() + self._look_s

    def _mark(self, condition_id: str) -> object:
        """Size and time of a condition's journal and record; None while there is neither."""
        try:
            files = self._sweep.child("conditions", condition_id).files()
        except StorageError:
            return None
        return {file for file in files if file.path in (JOURNAL, RECORD)} or None

    def _deliver_waiting(self) -> None:
        try:
            delivery = self._connect()
            for condition_id in list(self._waiting):
                if not self._inbox.empty():
                    return
                self._deliver_one(delivery, condition_id)
        except BdrayError as error:
            self._postpone(error)

    def _deliver_one(self, delivery: Delivery, condition_id: str) -> None:
        self._running.setdefault(condition_id, None)
        try:
            if delivery.is_delivered(condition_id) or delivery.deliver(condition_id):
                self._delivered.add(condition_id)
                self._running.pop(condition_id, None)
        except UnreachableError:
            raise
        except StorageNotFoundError:
            # Its trial has only just begun and has written nothing: its journal will be seen.
            pass
        except (TrackingError, StorageError) as error:
            # Its next epoch or the last pass tries again; the others must not wait for it.
            _log(f"{condition_id}: {error}")
        del self._waiting[condition_id]
        self._backoff, self._error = _BACKOFF_S[0], None

    def _connect(self) -> Delivery:
        if self._lock is None:
            lock = ExitStack()
            # Another one delivers once this lock is lost: the driver starts a mirror in this one's place.
            held = SweepFolder(self._sweep).locked(MIRROR_LOCK, _LOCK_S, _BusyError.by, lost=lambda: os._exit(1))
            lock.enter_context(held)
            self._lock = lock
        if self._delivery is None:
            self._delivery = Delivery.connect(self._sweep, self._uri)
            self._delivery.moved = self._step
            _log(f"connected to {public(self._uri)}")
        return self._delivery

    def _postpone(self, error: Exception) -> None:
        self._error = str(error)
        if isinstance(error, GoneError):
            self._delivery = None
        _log(f"{error}; next try in {self._backoff:.0f} s")
        self._next_try = time.monotonic() + self._backoff
        self._backoff = min(2 * self._backoff, _BACKOFF_S[1])

    def _finish(self, ending: _Ending) -> None:
        self._moved = self._next_step = time.monotonic()
        threading.Thread(target=self._watch, args=(ending,), daemon=True).start()
        self._answer("report", asdict(self._last_pass()))

    def _watch(self, ending: _Ending) -> None:
        """Cuts the last pass when it stalls or its time is over."""
        limit = self._moved + ending.limit_s
        while (left := min(self._moved + ending.stall_s, limit) - 0.5 - time.monotonic()) > 0:
            time.sleep(left)
        # The main thread may hang in a request: every write is idempotent, so it can be cut anywhere.
        self._answer("report", asdict(self._incomplete(f"MLflow has taken nothing for {ending.stall_s:.0f} s")))
        os._exit(0)

    def _step(self) -> None:
        """MLflow has taken something: the last pass has all its time again, and the driver hears of it now and then."""
        self._moved = time.monotonic()
        if self._moved >= self._next_step:
            self._next_step = self._moved + _STEP_S
            self._answer("step", {})

    def _progress(self, condition_id: str, total: int) -> None:
        self._delivered.add(condition_id)
        self._moved, self._backoff, self._error = time.monotonic(), _BACKOFF_S[0], None
        self._answer("progress", {"condition_id": condition_id, "total": total})

    def _last_pass(self) -> DeliveryReport:
        while True:
            try:
                return self._connect().deliver_all(self._progress)
            except BdrayError as error:
                self._postpone(error)
                patience = _ORPHAN.limit_s if isinstance(error, _BusyError) else _LAST_TRY_S
                is_late = time.monotonic() + self._backoff > self._moved + patience
                if not isinstance(error, UnreachableError) or is_late:
                    return self._incomplete(str(error))
                time.sleep(self._backoff / 2)

    def _incomplete(self, error: str) -> DeliveryReport:
        try:
            pending = undelivered(SweepFolder(self._sweep), self._delivered)
        except StorageError as problem:
            return DeliveryReport(len(self._delivered), tuple(self._waiting), str(problem))
        return DeliveryReport(len(self._delivered), pending, self._error or error)

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
    loop = _MirrorLoop(Storage.open(location).patiently(), tracking_uri, answers := _private_stdout())
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    loop.listen()
    try:
        loop.start()
    except BdrayError as error:
        print(json.dumps({"event": "refused", "message": str(error)}), file=answers, flush=True)
        sys.exit(2)
    loop.run()


if __name__ == "__main__":
    main()
