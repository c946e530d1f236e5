"""A sweep whose MLflow server takes its time over every request (`python -m benchmarks.delivery --delay 2`).

A real `mlflow server` over SQLite on loopback, behind a proxy that holds each request back; a real sweep of tiny
conditions that delivers there.
"""

from __future__ import annotations

import argparse
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.tracking_server import TrackingServer

ROOT = Path(__file__).parents[1]
SPACE = """\
name: delivery
seeds: [0]
fixed:
  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 50}
  model: {name: resnet8}
  trigger: {name: patch}
  train: {epochs: 1, batch_size: 50}
  finetune: {epochs: 1, batch_size: 50, fraction: 0.1}
parameters:
  finetune.lr: {values: [LRS]}
"""
_HOPS = {"connection", "transfer-encoding", "content-length", "host"}


class SlowProxy(ThreadingHTTPServer):
    """Hands requests on after a while, and counts them."""

    daemon_threads = True

    def __init__(self, port: int, delay_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.delay_s = port, delay_s
        self.requests: Counter[str] = Counter()


class _Handler(BaseHTTPRequestHandler):
    server: SlowProxy
    protocol_version = "HTTP/1.1"

    def _hand_on(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests[f"{self.command} {self._kind()}"] += 1
        time.sleep(self.server.delay_s)
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOPS}
        behind.request(self.command, self.path, content, {**headers, "Content-Length": str(len(content))})
        answer = behind.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOPS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)
        behind.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _hand_on  # noqa: N815 - named by http.server

    def _kind(self) -> str:
        path = self.path.partition("?")[0]
        return "artifact" if "/artifacts/" in path else path.rpartition("/mlflow/")[2]

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def main() -> int:
    """Run the sweep, and say how long the delivery took and what it asked of the server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delivery", description=__doc__)
    parser.add_argument("--delay", type=float, default=2.0, metavar="SECONDS", help="of each request (default: 2)")
    parser.add_argument("--conditions", type=int, default=12)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        TrackingServer(Path(name, "m.db"), log=Path(name, "server.log")) as server,
    ):
        proxy = SlowProxy(server.port, options.delay)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        learning_rates = ", ".join(f"{0.001 * (n + 1):.3f}" for n in range(options.conditions))
        Path(name, "delivery.yaml").write_text(SPACE.replace("LRS", learning_rates))
        command = [sys.executable, "-u", "-m", "bdray.sweep", "delivery.yaml", "--no-dashboard"]
        command += ["--tracking-uri", f"http://127.0.0.1:{proxy.server_address[1]}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        sweep = subprocess.Popen(command, cwd=name, stdout=subprocess.PIPE, text=True, env=environment)
        assert sweep.stdout is not None
        began = delivering = time.monotonic()
        for line in sweep.stdout:
            print(f"{time.monotonic() - began:6.1f} s  {line}", end="", flush=True)
            if line.startswith("delivering"):
                delivering = time.monotonic()
        status, ended = sweep.wait(), time.monotonic()
        print(f"\nexit status {status}; {ended - began:.0f} s in all, {ended - delivering:.0f} s after the last trial")
        print(f"{sum(proxy.requests.values())} requests: {dict(proxy.requests.most_common())}")
    return status


if __name__ == "__main__":
    sys.exit(main())
