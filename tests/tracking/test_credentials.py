"""A password in a tracking URI is handed to MLflow and to nobody else."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from waiting import HANG_S

from bdray.credentials import public
from bdray.errors import TrackingError
from bdray.store.storage import Storage
from bdray.tracking import start_mirror, sync_sweep, tracking_mark

SECRET = "s3cr3tw0rd"


@pytest.fixture
def guarded() -> Iterator[tuple[int, set[str]]]:
    """A server that refuses everything; its port and what it was told of who asks."""
    seen: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            seen.add(self.headers.get("Authorization", ""))
            self.send_response(500)
            self.end_headers()

        do_GET = do_POST = _refuse  # noqa: N815 - the library's names

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, seen
    server.shutdown()
    server.server_close()


@pytest.mark.system
@pytest.mark.long
def test_a_password_is_in_no_file_and_no_command_line(new_sweep: Any, guarded: tuple[int, set[str]]) -> None:
    sweep, (port, seen) = new_sweep(), guarded
    sweep.finished(1)
    mirror = start_mirror(str(sweep.path), f"http://user:{SECRET}@127.0.0.1:{port}")
    ready = mirror.wait_ready(HANG_S)
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    report = mirror.close(5)
    written = [path.read_bytes() for path in sweep.path.rglob("*") if path.is_file()]
    assert "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode() in seen
    assert f"http://user:***@127.0.0.1:{port}" in ready.message
    assert not any(
        SECRET.encode() in text for text in [*lines, *written, ready.message.encode(), repr(report).encode()]
    )


def test_what_is_stored_and_shown() -> None:
    uri = f"http://user:{SECRET}@host:5000/mlflow"
    assert public(uri) == "http://user:***@host:5000/mlflow"
    assert tracking_mark(Storage.open("/runs/demo"), uri) == "http://user@host:5000/mlflow"
    assert public(f"sweep --tracking-uri {uri}") == f"sweep --tracking-uri {public(uri)}"


def test_sync_asks_for_the_password_that_is_not_stored(
    new_sweep: Any, guarded: tuple[int, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    uri = f"http://user@127.0.0.1:{guarded[0]}"
    with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        sync_sweep(str(new_sweep().path), uri)
