"""The driver's end of the mirror. Nothing here waits for MLflow, except where the caller says how long."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import bdray
from bdray.credentials import public
from bdray.errors import TrackingError
from bdray.store.file_names import MIRROR_LOG
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.tracking.messages import DeliveryReport, Progress, ReadyInfo, sync_command, undelivered
from bdray.tracking.server import absolute_tracking_uri

_RESTART_S = 60.0

_LISTEN_S = 0.5
_DEATHS = 3
"""How many deaths of the process, while it is waited for, are taken for bad luck."""


def start_mirror(sweep: str | Storage, tracking_uri: str) -> Mirror:
    """Starts the process that delivers the sweep to MLflow; returns at once.

    Args:
        sweep: the sweep's folder, which holds `sweep.json`.
        tracking_uri: MLflow's server or database; a relative database path is made absolute.
    """
    return Mirror(Storage.open(sweep), absolute_tracking_uri(tracking_uri))


class Mirror:
    """A running mirror process. It ends with the driver, whatever happens to the driver."""

    def __init__(self, sweep: Storage, tracking_uri: str) -> None:
        self._sweep, self._uri = sweep, tracking_uri
        self._delivered: set[str] = set()
        self._deaths = 0
        self._trouble: str | None = None
        self._death = f"the process that delivers to MLflow died; see {sweep.uri_of(MIRROR_LOG)}"
        self._start()

    def wait_ready(self, timeout_s: float = 30.0) -> ReadyInfo:
        """Waits until experiment, parent run and database are there, or are known not to be.

        A server that cannot be connected to is reported in about two seconds, one that hangs after some ten.

        Raises:
            TrackingError: MLflow refuses (wrong URI, no permission, deleted experiment), or the mirror dies every time.
        """
        answer = self._receive(timeout_s)
        match answer.pop("event", "timeout"):
            case "ready":
                return ReadyInfo(**answer)
            case "refused":
                self._death = str(answer["message"])
                raise TrackingError(self._death)
            case "died" if self._restarted():
                return self.wait_ready(timeout_s)
            case "died":
                raise TrackingError(self._death)
        later = f"it will be delivered later: {sync_command(self._sweep)}"
        return ReadyInfo(f"MLflow at {public(self._uri)} has not answered within {timeout_s:.0f} s; {later}")

    def keep_alive(self) -> None:
        """Starts the process again if it has died. Never waits, never raises."""
        if self._process.poll() is not None and time.monotonic() - self._started > _RESTART_S:
            with suppress(OSError):
                self._start()

    def close(self, stall_s: float = 60.0, progress: Progress = lambda _id, _total: None) -> DeliveryReport:
        """Lets the mirror do a last complete pass, as long as it goes on or until Ctrl-C. Never raises.

        Args:
            stall_s: for how many seconds MLflow may take nothing.
            progress: told of each that it has delivered.
        """
        if self._process.poll() is not None:
            with suppress(OSError):
                self._start()
        self._ask_for_the_rest()
        try:
            report = self._await_report(stall_s, progress)
        except KeyboardInterrupt:
            # Every write is idempotent: it can be cut anywhere.
            self._process.kill()
            report = self._incomplete("interrupted")
        self._end()
        return report

    def _ask_for_the_rest(self) -> None:
        with suppress(OSError):
            self._pipe.write(b"end\n")
        with suppress(OSError):
            self._pipe.close()

    def _restarted(self) -> bool:
        """Whether there is another process in the place of the one that has just died."""
        self._deaths += 1
        if self._deaths >= _DEATHS:
            return False
        try:
            self._start()
        except OSError:
            return False
        return True

    def _start(self) -> None:
        package = str(Path(bdray.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        log = self._sweep.local_path(MIRROR_LOG)
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        with open(log or os.devnull, "ab") as stderr:  # noqa: PTH123 - a path or the null device
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bdray.tracking.mirror", self._sweep.uri],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                bufsize=0,
                start_new_session=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._pipe: IO[bytes] = self._process.stdin
        self._started = time.monotonic()
        # Not arguments: those can be read by every user of the machine.
        self._pipe.write(f"{self._uri}\n{self._sweep.location}\n".encode())
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=_listen, args=(self._process.stdout, self._answers), daemon=True).start()

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        # Not one long wait: a Ctrl-C that comes just before it would be heard at its end.
        end = time.monotonic() + timeout_s
        while True:
            left = end - time.monotonic()
            with suppress(queue.Empty):
                return dict(self._answers.get(timeout=max(0.0, min(left, _LISTEN_S))))
            if left <= _LISTEN_S:
                return {}

    def _await_report(self, stall_s: float, progress: Progress) -> DeliveryReport:
        deadline = time.monotonic() + stall_s
        while answer := self._receive(deadline - time.monotonic()):
            match answer.pop("event"):
                case "step":
                    deadline, self._trouble = time.monotonic() + stall_s, None
                case "trouble":
                    self._trouble = answer["message"]
                case "delivered":
                    self._delivered.add(answer["condition_id"])
                case "progress":
                    deadline, self._trouble = time.monotonic() + stall_s, None
                    self._delivered.add(answer["condition_id"])
                    progress(answer["condition_id"], answer["total"])
                case "report":
                    return DeliveryReport(answer["delivered"], tuple(answer["pending"]), answer["error"])
                case "refused":
                    return self._incomplete(answer["message"])
                case "died" if self._restarted():
                    self._ask_for_the_rest()
                    deadline = time.monotonic() + stall_s
                case "died":
                    return self._incomplete(self._death)
        return self._incomplete(self._trouble or f"MLflow has taken nothing for {stall_s:.0f} s")

    def _incomplete(self, error: str) -> DeliveryReport:
        try:
            pending = undelivered(SweepFolder(self._sweep), self._delivered)
        except Exception:
            pending = ()
        return DeliveryReport(len(self._delivered), pending, error)

    def _end(self) -> None:
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _listen(stdout: IO[bytes], answers: queue.Queue[dict[str, Any]]) -> None:
    with stdout:
        for line in stdout:
            with suppress(ValueError):
                answers.put(json.loads(line))
    answers.put({"event": "died"})
