"""An `mlflow server` of one's own on loopback, that can be struck and comes back as under a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

from benchmarks.hosts import Link
from benchmarks.ports import free_port

_START_S = 1500.0
"""Longer than a start takes on the busiest machine."""

_ENDS_S = 3600
"""It ends by itself, should the process that started it be killed."""


class TrackingServer:
    """A server over one SQLite database, with its artifacts beside it.

    Args:
        log: file that what it says is appended to.
        port: None: one that is free.
        link: which it stands at the other end of; None: on loopback.
    """

    def __init__(self, database: Path, log: Path, port: int | None = None, link: Link | None = None) -> None:
        self._database, self._log, self._link = database, log, link
        self._address = "127.0.0.1" if link is None else link.address
        self.port = free_port() if port is None else port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{self._address}:{self.port}"

    def __enter__(self) -> Self:
        self._start()
        self.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes, and start it again when they have ended."""
        self._end(number)
        self._start()

    def wait(self) -> None:
        """Until it says that it is well; connections are taken earlier, and broken again.

        Raises:
            RuntimeError: it ended, or never said so.
        """
        deadline = time.monotonic() + _START_S
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), urlopen(f"{self.uri}/health", timeout=60):
                return
            time.sleep(0.2)
        raise RuntimeError(f"the tracking server did not start:\n{self._log.read_text()}")

    def _start(self) -> None:
        options = {
            "--host": self._address,
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{self._database}",
            "--artifacts-destination": str(self._database.parent / "served"),
        }
        if self._link is not None:
            # On loopback all are, by default, so that a proxy may stand before it.
            options["--allowed-hosts"] = f"{self._address}:{self.port}"
        words = (word for item in options.items() for word in item)
        there = () if self._link is None else self._link.beyond
        command = [*there, "timeout", "-s", "KILL", str(_ENDS_S), sys.executable, "-m", "mlflow", "server", *words]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **quiet}
            )

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
