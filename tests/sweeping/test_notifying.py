"""What is posted, by a real sweep, to a server of the test's own; and what is never shown of the address."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from waiting import HANG_S

from bdray.cli import main, without_option
from bdray.errors import UserError
from bdray.sweeping.notifying import Notifier

ROOT = Path(__file__).parents[2]
SPACE = """\
name: told
seeds: [0, 1]
plugins: [broken_trigger]
fixed:
  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}
  model: resnet8
  train: {epochs: 1, batch_size: 32, precision: float32}
  finetune: {epochs: 0}
parameters: {trigger.name: {values: [patch, broken]}}
"""
BROKEN = """\
from bdray.triggers import TRIGGERS, Trigger

@TRIGGERS.register("broken")
class Broken(Trigger):
    def apply(self, images, generator):
        raise ValueError("the page is torn")
"""
SECRET = "T0K3N"


class Server(HTTPServer):
    """Keeps what is posted."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.posted = status, list[dict[str, Any]]()
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hooks/{SECRET}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append(json.loads(body))
        self.server.headers.append(dict(self.headers))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.system
@pytest.mark.long
@pytest.mark.usefixtures("database_in_runs")
def test_a_real_sweep_tells_its_first_failure_and_its_end(server: Server, tmp_path: Path) -> None:
    (tmp_path / "told.yaml").write_text(SPACE)
    (tmp_path / "broken_trigger.py").write_text(BROKEN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "bdray", "sweep", "told.yaml", "--no-dashboard", "--num-cpus", "1"]
    done = subprocess.run(
        [*command, "--notify", server.url],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    failed, finished = server.posted
    assert (failed["event"], failed["sweep"]) == ("failed", "told")
    assert (finished["event"], finished["finished"], finished["failed"], finished["to_go"]) == ("finished", 2, 2, 0)
    assert finished["text"] == "told finished: 2 finished, 2 failed, 0 to go"
    # Nowhere is the address, nor what would show it: the command that continues is without it.
    assert SECRET not in done.stdout + done.stderr
    assert (
        "run them again with: python -m bdray sweep told.yaml --no-dashboard --num-cpus 1 --retry-failed\n"
        in done.stdout
    )
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert [path for path in kept if SECRET.encode() in path.read_bytes()] == []


def test_a_login_in_the_address_becomes_a_header(server: Server) -> None:
    Notifier(server.url.replace("://", "://ada:l%20ve@"), pytest.fail).send("finished", "s", "s finished")
    assert server.headers[0]["Authorization"] == f"Basic {base64.b64encode(b'ada:l ve').decode()}"


def test_a_server_that_refuses_is_named_without_what_follows(server: Server) -> None:
    said: list[str] = []
    server.status = 403
    Notifier(server.url, said.append).send("finished", "s", "s finished")
    Notifier(f"http://127.0.0.1:9/{SECRET}", said.append).send("stopped", "s", "s stopped")
    assert said == [
        f"--notify: http://127.0.0.1:{server.server_port} answers 403; 'finished' was not told",
        "--notify: http://127.0.0.1:9 cannot be reached; 'stopped' was not told",
    ]


def test_only_the_first_failure_is_told(server: Server) -> None:
    notifier = Notifier(server.url, pytest.fail)
    for name in ("one", "two"):
        notifier.first_failure("s", name, "lost postgresql://ada:love@db/x")
    notifier.finish()
    ((told),) = server.posted
    assert (told["condition_id"], told["cause"]) == ("one", "lost postgresql://ada:***@db/x")


@pytest.mark.parametrize("url", ["hooks/x", "file:///etc/passwd", "ftp://host/x", "https:///x"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="--notify: must be the address of a server"):
        Notifier(url, pytest.fail)


def test_nothing_is_sent_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("something is sent"))
    notifier = Notifier(None, pytest.fail)
    notifier.first_failure("s", "one", "lost")
    notifier.send("finished", "s", "s finished")
    notifier.finish()


@pytest.mark.parametrize("typed", [["--notify", "u"], ["--notify=u"], ["--noti", "u"]])
def test_the_option_is_taken_out_of_a_command(typed: list[str]) -> None:
    words = ["sweep", "a.yaml", "--no-dashboard", *typed, "--name", "n", "--num-cpus", "2"]
    kept = ["sweep", "a.yaml", "--no-dashboard", "--name", "n", "--num-cpus", "2"]
    assert without_option(words, "--notify") == kept


def test_a_wrong_address_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.yaml").write_text(SPACE)
    (tmp_path / "broken_trigger.py").write_text(BROKEN)
    monkeypatch.setenv("BDRAY_NOTIFY", f"mailto:{SECRET}")
    assert main(["sweep", "told.yaml", "--no-dashboard"]) == 2
    said = capsys.readouterr().err
    assert "must be the address of a server" in said
    assert SECRET not in said
