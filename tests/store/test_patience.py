"""An S3 store where nobody listens for a while."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from bdray.errors import StorageError, StorageNotFoundError
from bdray.store.storage import Storage
from benchmarks.ports import free_port

pytestmark = pytest.mark.system

AWAY_S = 9.0


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where moto's server will listen in `AWAY_S`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "someone")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    port, servers = free_port(), list[subprocess.Popen[bytes]]()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    def come() -> None:
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    later = threading.Timer(AWAY_S, come)
    later.start()
    yield port
    later.cancel()
    later.join()
    for server in servers:
        server.kill()
        server.wait()


def test_a_patient_storage_waits_for_a_store_that_comes(port: int) -> None:
    uri = f"s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    storage = Storage.open(uri)
    with pytest.raises(StorageError) as away:
        storage.read_text("sweep.json")
    assert not isinstance(away.value, StorageNotFoundError)
    # There is a server then, and no such bucket.
    with pytest.raises(StorageNotFoundError):
        storage.patiently().child("far").read_text("sweep.json")


def test_patience_is_no_part_of_what_a_storage_is() -> None:
    storage = Storage.open("s3://bucket/runs?region=us-east-1")
    assert storage.patiently() == storage
    assert storage.patiently().child("sweep").is_patient
    assert "patient" not in repr(storage.patiently())
