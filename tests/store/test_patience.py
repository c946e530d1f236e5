"""An S3 store where nobody listens for a while."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from bdray.errors import StorageError, StorageNotFoundError
from bdray.store.storage import Storage
from benchmarks.ports import free_port

pytestmark = [pytest.mark.system, pytest.mark.long]

AWAY_S = 5.0
"""Longer than a storage tries that is not patient."""


@pytest.fixture
def come(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Starts moto's server on a port, `AWAY_S` from now."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "someone")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    servers, timers = list[subprocess.Popen[bytes]](), list[threading.Timer]()

    def start(port: int) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def come(port: int) -> None:
        timers.append(threading.Timer(AWAY_S, start, [port]))
        timers[-1].start()

    yield come
    for timer in timers:
        timer.cancel()
        timer.join()
    for server in servers:
        server.kill()
        server.wait()


def test_a_patient_storage_waits_for_a_store_that_comes(come: Callable[[int], None]) -> None:
    port = free_port()
    storage = Storage.open(f"s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1")
    with pytest.raises(StorageError) as away:
        storage.read_text("sweep.json")
    assert not isinstance(away.value, StorageNotFoundError)
    come(port)
    # There is a server then, and no such bucket.
    with pytest.raises(StorageNotFoundError):
        storage.patiently().child("far").read_text("sweep.json")


def test_patience_is_no_part_of_what_a_storage_is() -> None:
    storage = Storage.open("s3://bucket/runs?region=us-east-1")
    assert storage.patiently() == storage
    assert storage.patiently().child("sweep").is_patient
    assert "patient" not in repr(storage.patiently())
