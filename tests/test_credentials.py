"""Passwords in URIs appear nowhere; whoever needs them gets them."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from waiting import HANG_S, until

from bdray.cli import main
from bdray.condition import Condition
from bdray.credentials import is_hidden, public, without_login, without_password
from bdray.errors import StorageError, UserError
from bdray.record import ErrorRecord
from bdray.store.condition_folder import write_failure
from bdray.store.storage import Storage
from bdray.tracking import start_mirror, tracking_mark
from bdray.tracking.server import artifact_location

SECRET = "s3cr3tw0rd"


@pytest.mark.parametrize(
    ("uri", "shown", "kept"),
    [
        ("http://user:{}@host:5000/ml@flow", "http://user:***@host:5000/ml@flow", "http://user@host:5000/ml@flow"),
        ("s3://AKIA:{}@bucket/runs?region=x", "s3://AKIA:***@bucket/runs?region=x", "s3://AKIA@bucket/runs?region=x"),
        ("s3://AKIA:{}/+x@bucket/runs", "s3://AKIA:***@bucket/runs", "s3://AKIA@bucket/runs"),
        ("abfs://:{}@store/x", "abfs://:***@store/x", "abfs://@store/x"),
        ("postgresql://u:p@{}@h/db", "postgresql://u:***@h/db", "postgresql://u@h/db"),
        (
            "abfs://c@a/x?tenant_id=t&client_secret={}&b=1",
            "abfs://c@a/x?tenant_id=t&client_secret=***&b=1",
            "abfs://c@a/x?tenant_id=t&b=1",
        ),
        ("postgresql://u@h/db?password={}", "postgresql://u@h/db?password=***", "postgresql://u@h/db"),
        ("http://host:5000/a@b", "http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////tmp/a:b@c/mlflow.db", "sqlite:////tmp/a:b@c/mlflow.db", "sqlite:////tmp/a:b@c/mlflow.db"),
        ("s3://bucket/runs?endpoint_override=h:9", "s3://bucket/runs?endpoint_override=h:9", None),
        ("/a/folder:with@signs", "/a/folder:with@signs", None),
    ],
)
def test_what_is_shown_and_what_is_kept_of_a_uri(uri: str, shown: str, kept: str | None) -> None:
    uri = uri.format(SECRET)
    assert public(uri) == shown
    assert without_password(uri) == (kept or uri)
    assert public(f"sweep --storage '{uri}' failed") == f"sweep --storage '{shown}' failed"
    assert is_hidden(shown) == (shown != uri)
    assert public(shown) == shown


def test_a_decoded_password_in_a_librarys_message_is_hidden() -> None:
    assert public("no host u:a b@h", "http://u:a%20b@h") == "no host u:***@h"
    assert without_login(f"s3://AKIA:{SECRET}@bucket/runs") == "s3://bucket/runs"


def test_a_storage_shows_no_secret_and_hands_it_on() -> None:
    given = f"s3://AKIA:{SECRET}%2F@bucket/runs?region=x&session_token={SECRET}"
    storage = Storage.open(given)
    sweep = storage.child("demo", "x").parent
    assert storage.location == given
    assert sweep.location == given.replace("/runs", "/runs/demo")
    assert sweep.uri == "s3://AKIA:***@bucket/runs/demo?region=x&session_token=***"
    assert Storage.open(sweep) == pickle.loads(pickle.dumps(sweep)) == sweep
    for text in (repr(sweep), str(sweep), sweep.uri_of("a/b"), sweep.name):
        assert SECRET not in text
    with pytest.raises(UserError, match="the password is missing"):
        Storage.open(sweep.uri)
    with pytest.raises(UserError, match="percent-encoded") as raised:
        Storage.open(f"s3://AKIA:{SECRET}/x@bucket/runs")
    assert SECRET not in str(raised.value)
    with pytest.raises(UserError) as raised:
        Storage.open(f"s4://AKIA:{SECRET}@bucket/runs")
    assert SECRET not in str(raised.value)


def test_no_secret_is_written_for_mlflow() -> None:
    storage = Storage.open(f"s3://AKIA:{SECRET}@bucket/runs")
    assert artifact_location("postgresql://user@host/db", storage) == "s3://bucket/runs/mlflow-artifacts"
    assert tracking_mark(storage, f"postgresql://u@h/db?password={SECRET}") == "postgresql://u@h/db"


def test_a_failed_condition_says_no_password(tmp_path: Path) -> None:
    condition = Condition.parse({"data": {"name": "digits"}, "model": {"name": "resnet8"}, "poison": {"rate": 0.0}})
    sweep, text = Storage.open(tmp_path), f"cannot read http://user:{SECRET}@host/x"
    write_failure(sweep, condition, ErrorRecord(kind="OSError", message=text), started_ms=0, detail=text)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"http://user:***@host/x" in content for content in written)
    assert not any(SECRET.encode() in content for content in written)


@pytest.fixture
def store() -> Iterator[tuple[int, set[str]]]:
    """An object store that lets nobody in; its port and who asked."""
    seen: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            seen.add(self.headers.get("Authorization", ""))
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_HEAD = do_POST = _refuse  # noqa: N815 - the library's names

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, seen
    server.shutdown()
    server.server_close()


def test_the_command_shows_no_password_and_warns_of_the_typed_one(
    store: tuple[int, set[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = f"s3://AKIA:{SECRET}@bucket/runs?endpoint_override=127.0.0.1:{store[0]}&scheme=http&region=x"
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: demo\nfixed: {data: {name: digits}, model: {name: resnet8}}\n"
        f"tracking: {{uri: 'http://user:{SECRET}@127.0.0.1:9'}}\nparameters: {{trigger.name: {{values: [patch]}}}}\n"
    )
    # A process of its own: a sweep's driver is a child of its command.
    command = [sys.executable, "-m", "bdray", "sweep", str(space), "--storage", storage]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    out, err = done.stdout, done.stderr
    assert done.returncode == 1, err
    assert any("Credential=AKIA/" in who for who in store[1]), "it was logged in with"
    assert "warning: a password in the command line can be read by every user" in err
    assert re.search(r"s3://AKIA:\*\*\*@bucket/runs", err)
    assert SECRET not in out + err
    assert main(["sweep", str(space), "--dry-run"]) == 0
    out, err = capfd.readouterr()
    assert "warning" not in err
    assert SECRET not in out + err


def test_the_mirror_gets_the_storages_password_by_stdin(store: tuple[int, set[str]]) -> None:
    uri = f"s3://AKIA:{SECRET}@bucket/runs/x?endpoint_override=127.0.0.1:{store[0]}&scheme=http&region=x"
    mirror = start_mirror(Storage.open(uri), f"http://user:{SECRET}@127.0.0.1:9")

    def seen() -> list[bytes]:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        return lines if any(b"bdray.tracking.mirror" in line and b"AKIA:***@" in line for line in lines) else []

    lines = until(seen)
    report = mirror.close(20)
    assert not any(SECRET.encode() in line for line in lines)
    assert SECRET not in repr(report)


def test_an_unreadable_store_is_named_without_its_password(store: tuple[int, set[str]]) -> None:
    uri = f"s3://AKIA:{SECRET}@bucket/runs?endpoint_override=127.0.0.1:{store[0]}&scheme=http&region=x"
    with pytest.raises(StorageError, match=r"AKIA:\*\*\*@bucket") as raised:
        Storage.open(uri).read_bytes("x")
    assert SECRET not in str(raised.value)
