"""An `mlflow server` of one's own on loopback, that can be struck and comes back as under a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from socket import create_connection, socket
from types import TracebackType
from typing import Self

_START_S = 120.0


class TrackingServer:
    """A server over one SQLite database, with its artifacts beside it.

    Args:
        log: file that what it says is appended to.
    """

    def __init__(self, database: Path, log: Path) -> None:
        self._database, self._log = database, log
        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start()
        self.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(signal.SIGKILL)

    def strike(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes, and start it again when they have ended."""
        self._end(number)
        self._start()

    def wait(self) -> None:
        """Until it takes connections.

        Raises:
            RuntimeError: it ended, or did not in two minutes.
        """
        deadline = time.monotonic() + _START_S
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.2)
        raise RuntimeError(f"the tracking server did not start:\n{self._log.read_text()}")

    def _start(self) -> None:
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{self._database}",
            "--artifacts-destination": str(self._database.parent / "served"),
        }
        command = [sys.executable, "-m", "mlflow", "server", *(word for item in options.items() for word in item)]
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
