"""An object store that is far away: moto's S3 server, and before it a proxy that counts requests and delays each.

`python -m benchmarks slow_store`: what commands that read a large sweep take, here and there, and what requests a
trained condition takes there.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bdray.store.records import read_records
from bdray.store.storage import Storage
from benchmarks.measure import Report, Row, Target, progress
from benchmarks.ports import free_port

ROOT = Path(__file__).parents[1]
DELAY_S = 0.03
SMALL_SPACE = """\
name: small
seeds: [0, 1]
fixed:
  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 50}
  model: {name: resnet8}
  trigger: {name: patch}
  train: {epochs: 2, batch_size: 50}
  finetune: {epochs: 2, batch_size: 50, fraction: 0.1}
parameters:
  poison.rate: {values: [0.1, 0.2, 0.3]}
"""
SMALL = 6
"""Conditions of it; it has no baselines, as it trains on one trigger."""

_HEAD_LIMIT = 1 << 20
_START_S = 60.0


@dataclass
class SlowStore:
    """A bucket behind the proxy.

    Attributes:
        port: the proxy's, on loopback.
        delay_s: what each request waits before it is handed on.
        requests: how many there were, by method.
        lines: the first line of each, in order.
    """

    port: int = 0
    delay_s: float = 0.0
    lines: list[str] = field(default_factory=list)

    @property
    def requests(self) -> Counter[str]:
        return Counter(line.partition(" ")[0] for line in self.lines)

    def uri(self, path: str = "") -> str:
        """What `Storage.open` takes."""
        return f"s3://bucket/{path}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"


@contextmanager
def slow_store() -> Iterator[SlowStore]:
    """moto's server in a process of its own with an empty bucket, the proxy in a thread of this one; both end with the
    context. Credentials are set for this process and those it starts."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    credentials = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in credentials}
    os.environ.update(credentials)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(port)
        with _proxy(SlowStore(), port) as store:
            yield store
    finally:
        server.terminate()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _make_bucket(port: int) -> None:
    from pyarrow.fs import S3FileSystem

    files = S3FileSystem(
        region="us-east-1", scheme="http", endpoint_override=f"127.0.0.1:{port}", allow_bucket_creation=True
    )
    deadline = time.monotonic() + _START_S
    while True:
        try:
            files.create_dir("bucket")
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@contextmanager
def _proxy(store: SlowStore, target: int) -> Iterator[SlowStore]:
    loop = asyncio.new_event_loop()

    serve = partial(_serve, store, target)
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, limit=_HEAD_LIMIT, backlog=512))
    store.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="slow-store", daemon=True)
    thread.start()
    try:
        yield store
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(_end(asyncio.all_tasks(loop)))
        loop.close()


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _serve(store: SlowStore, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # Cancelled only when the proxy ends.
    with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        await _forward(store, target, reader, writer)
    writer.close()


async def _forward(store: SlowStore, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests one after the other, answers as they come."""
    upstream, outgoing = await asyncio.open_connection("127.0.0.1", target, limit=_HEAD_LIMIT)
    answers = asyncio.create_task(_pipe(upstream, writer))
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            store.lines.append(head.partition(b"\r\n")[0].decode())
            await asyncio.sleep(store.delay_s)
            outgoing.write(head)
            if b"expect: 100-continue" in head.lower():
                await outgoing.drain()
            await _body(head, reader, outgoing)
            await outgoing.drain()
    finally:
        outgoing.close()
        answers.cancel()


async def _body(head: bytes, reader: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            outgoing.write(line + await reader.readexactly(size + 2 if size else 0))
            if not size:
                outgoing.write(await reader.readuntil(b"\r\n"))
                return
    left = int(fields.get(b"content-length", b"0"))
    while left:
        part = await reader.read(min(left, _HEAD_LIMIT))
        if not part:
            raise ConnectionError
        outgoing.write(part)
        await outgoing.drain()
        left -= len(part)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while part := await reader.read(_HEAD_LIMIT):
            writer.write(part)
            await writer.drain()
    # moto closes after every answer.
    writer.close()


def measure(*, quick: bool = False) -> Report:
    """A large finished sweep read here and from the store, and the requests of a small one that is run there."""
    from benchmarks.finished_sweep import large_space, templates_of, upload, write_finished

    with tempfile.TemporaryDirectory() as name, slow_store() as store:
        folder = Path(name)
        space = large_space(folder, **({"rates": 2, "learning_rates": 2, "seeds": 1} if quick else _LARGE))
        conditions = space.conditions()
        progress(f"  {len(conditions):,} conditions, written to disk ...")
        templates = templates_of(conditions)
        near, far = Storage.open(folder / "runs"), Storage.open(store.uri("runs"))
        write_finished(near.child("large"), space, conditions, templates)
        rows = [Row("the sweep's end reads each record and gathers all: disk", _gathering(near.child("large")))]
        rows += [_reading(command, near, None, bound) for command, bound in _NEAR.items()]
        progress("  the same, written to the store ...")
        upload(near.child("large"), far.child("large"))
        store.delay_s = DELAY_S
        rows += [_reading(command, far, store, bound) for command, bound in _FAR.items()]
        requests = len(of_conditions(requests_of_a_sweep(store, folder))) / SMALL
        rows.append(Row("requests a trained condition", {}, requests, Target("under", 40)))
    return Report(
        f"A sweep of {len(conditions):,} finished conditions, on a disk and in an object store at 30 ms a request",
        "measured",
        rows,
        [
            "Wall time of the whole command and its processor time, imports included. The store is moto's S3 server on"
            " the same cores, behind a proxy that holds each request back; its own time for a request is part of the"
            " figures. Every condition has its `record.json` (15 epochs), and all are gathered, as a sweep's end leaves"
            " them. The machine was shared with other work.",
            f"Requests a trained condition: those about a condition or its stages in a real sweep of {SMALL} tiny"
            " conditions (2 and 2 epochs), its tracking mirror's among them; what a sweep asks once, at its start and"
            " end, comes on top. Longer trainings have more: a checkpoint every 20 s, a journal every 15 s, and two"
            " looks at it.",
        ],
    )


_LARGE = {"rates": 25, "learning_rates": 20, "seeds": 5}
_NEAR = {"status": 2, "results": 5, "report": 60}
_FAR = {"status": 5, "results": 20}
"""Commands, and the seconds they should stay under."""


def _gathering(sweep: Storage) -> dict[str, float]:
    # What was written a moment ago is not gathered.
    time.sleep(3)
    started, before = time.perf_counter(), time.process_time()
    read_records(sweep)
    return {"s": time.perf_counter() - started, "processor s": time.process_time() - before}


def _reading(command: str, storage: Storage, store: SlowStore | None, bound: float) -> Row:
    """Seconds that a command takes, typed by a user."""
    before, started, processor = len(store.lines) if store else 0, time.perf_counter(), processor_s()
    _bdray([command, "large", "--storage", storage.location], ROOT)
    seconds = time.perf_counter() - started
    progress(f"  {command}: {seconds:.1f} s")
    figures = {"s": seconds, "processor s": processor_s() - processor}
    figures |= {"requests": float(len(store.lines) - before)} if store else {}
    return Row(f"bdray {command}: {'store' if store else 'disk'}, s", figures, seconds, Target("under", bound))


def processor_s() -> float:
    """Of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def of_conditions(lines: Sequence[str]) -> list[str]:
    """The requests about a condition or a stage: what a sweep asks once, whatever its size, is not among them."""
    return [line for line in lines if re.search(r"(/|%2F)(conditions|stages)(/|%2F)[0-9a-f]{12}", line)]


def requests_of_a_sweep(store: SlowStore, folder: Path) -> list[str]:
    """The requests of a small sweep that is run in the store: the first lines of each.

    Args:
        folder: for the sweep's YAML and its MLflow database.
    """
    (folder / "small.yaml").write_text(SMALL_SPACE)
    before = len(store.lines)
    where = ["--storage", store.uri("runs"), "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    _bdray(["sweep", "small.yaml", *where, "--num-cpus", "1", "--no-dashboard"], folder)
    return store.lines[before:]


def _bdray(arguments: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bdray", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
