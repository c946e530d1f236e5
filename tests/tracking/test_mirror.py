"""The mirror as a real process, against real databases and servers that die."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from waiting import HANG_S, until

from bdray.errors import TrackingError
from bdray.store.locks import file_lock
from bdray.store.storage import Storage
from bdray.store.sweep_status import say_phase
from bdray.tracking import DeliveryReport, start_mirror, sync_sweep
from bdray.tracking.server import open_client
from benchmarks.tracking_server import TrackingServer

pytestmark = [pytest.mark.system, pytest.mark.long]

ROOT = Path(__file__).parents[2]


def server(folder: Path, port: int) -> TrackingServer:
    """A real tracking server over the folder's database, killed the hard way in the end."""
    return TrackingServer(folder / "mlflow.db", folder / "server.log", port)


class SlowLine(socketserver.ThreadingTCPServer):
    """A proxy on loopback that holds each piece of a request back for a while, and falls silent after so many."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, delay_s: float, silent_after: float) -> None:
        super().__init__(("127.0.0.1", 0), _SlowConnection)
        self.behind, self.delay_s, self.silent_after, self.pieces = port, delay_s, silent_after, 0


class _SlowConnection(socketserver.BaseRequestHandler):
    server: SlowLine

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.behind)) as behind:
            threading.Thread(target=self._answers, args=(behind,), daemon=True).start()
            while piece := self.request.recv(1 << 20):
                self.server.pieces += 1
                time.sleep(self.server.delay_s)
                if self.server.pieces <= self.server.silent_after:
                    behind.sendall(piece)

    def _answers(self, behind: socket.socket) -> None:
        with suppress(OSError):
            while piece := behind.recv(1 << 20):
                self.request.sendall(piece)


@contextmanager
def slow_line(folder: Path, port: int, delay_s: float = 0.2, silent_after: float = float("inf")) -> Iterator[SlowLine]:
    """A real tracking server behind a slow line."""
    with server(folder, port), SlowLine(port, delay_s, silent_after) as line:
        threading.Thread(target=line.serve_forever, daemon=True).start()
        try:
            yield line
        finally:
            line.shutdown()


def test_epochs_are_seen_while_the_sweep_runs_and_a_killed_mirror_loses_nothing(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    mirror = start_mirror(str(sweep.path), sweep.uri)
    ready = mirror.wait_ready(HANG_S)
    assert ready.experiment_id == shown(sweep).experiment.experiment_id
    assert ready.parent_run_id == shown(sweep).parents[0].info.run_id

    mirror._process.send_signal(signal.SIGINT)
    first = sweep.condition(1)
    sweep.journal(first, 2)
    until(lambda: shown(sweep).children and shown(sweep).points(first) == sweep.points(first))
    assert shown(sweep).run(first).data.tags["bdray.status"] == "running"
    sweep.journal(first, 3)
    until(lambda: shown(sweep).points(first) == sweep.points(first))

    others = [sweep.finished(number) for number in range(2, 16)]
    until(lambda: len(shown(sweep).children) > 3)
    mirror._process.kill()
    mirror._process.wait()
    # However fast it was, these are left.
    others += [sweep.finished(number) for number in range(16, 30)]
    mirror.keep_alive()

    sweep.journal(first, 3)
    sweep.record(first)
    assert mirror.close(HANG_S) == DeliveryReport(29)
    mlflow = shown(sweep)
    assert (len(mlflow.children), len(mlflow.parents)) == (29, 1)
    assert all(mlflow.points(name) == sweep.points(name) for name in [first, *others])
    assert mlflow.parents[0].info.status == "FINISHED"


def test_a_server_that_is_dead_dies_and_comes_back(
    new_sweep: Any, shown: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    sweep, port = new_sweep(), free_port()
    uri = f"http://127.0.0.1:{port}"
    mirror = start_mirror(str(sweep.path), uri)
    ready = mirror.wait_ready(HANG_S)
    assert not ready.experiment_id
    assert (
        ready.message
        == f"{uri} is not reachable: Connection refused; it will be delivered later: bdray sync {sweep.path}"
    )
    first, second = sweep.condition(1), sweep.finished(2)
    sweep.journal(first, 1)

    with server(tmp_path, port):
        until(lambda: is_delivered(shown(sweep, uri), second))
    sweep.journal(first, 3)
    sweep.record(first)
    third = sweep.finished(3)
    log = sweep.path / "mirror.log"
    until(lambda: log.read_text().count("next try") >= 4)
    with server(tmp_path, port):
        until(lambda: is_delivered(shown(sweep, uri), first))
        assert mirror.close(HANG_S) == DeliveryReport(3)
        mlflow = shown(sweep, uri)
        assert len(mlflow.children) == 3
        assert all(mlflow.points(name) == sweep.points(name) for name in (first, second, third))
        artifacts = mlflow.client.list_artifacts(mlflow.run(first).info.run_id)
        assert [file.path for file in artifacts] == ["condition.json", "record.json"]


def is_delivered(mlflow: Any, condition_id: str) -> bool:
    return any(
        run.data.tags["bdray.condition_id"] == condition_id and "bdray.delivered" in run.data.tags
        for run in mlflow.children
    )


def test_a_dead_server_costs_a_bounded_time_and_is_reported(new_sweep: Any, free_port: Callable[[], int]) -> None:
    sweep = new_sweep()
    names = [sweep.finished(1), sweep.finished(2)]
    mirror = start_mirror(str(sweep.path), f"http://127.0.0.1:{free_port()}")
    ready = mirror.wait_ready(HANG_S)
    assert (ready.experiment_id, "Connection refused" in ready.message) == ("", True)
    report = mirror.close(5)
    assert (report.delivered, report.pending) == (0, tuple(names))
    # By the mirror, or by who waits for it, where it comes to its end too late.
    assert re.search("Connection refused|has taken nothing for 5 s", report.error or "")


def test_a_slow_server_gets_everything_however_long_it_takes(
    new_sweep: Any, shown: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    sweep, port = new_sweep(), free_port()
    names = [sweep.finished(number) for number in range(1, 3)]
    told: list[tuple[str, int]] = []
    with slow_line(tmp_path, port, delay_s=0.8) as line:
        mirror = start_mirror(str(sweep.path), f"http://127.0.0.1:{line.server_address[1]}")
        assert mirror.wait_ready(HANG_S).experiment_id
        before, begin = line.pieces, time.monotonic()
        assert mirror.close(6, lambda *entry: told.append(entry)) == DeliveryReport(2)
        assert (line.pieces - before) / 2 * line.delay_s > 6, "no condition took as long as nothing may happen"
        print(f"{(line.pieces - before) / 2:.1f} pieces a condition, {time.monotonic() - begin:.1f} s")
        assert told == [(name, 2) for name in names]
        mlflow = shown(sweep, f"http://127.0.0.1:{port}")
        assert all(mlflow.points(name) == sweep.points(name) for name in names)


def test_a_server_that_falls_silent_or_a_stop_ends_the_last_pass(
    new_sweep: Any, shown: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    sweep, port = new_sweep(), free_port()
    names = [sweep.finished(number) for number in range(1, 13)]
    with slow_line(tmp_path, port) as line:
        uri = f"http://127.0.0.1:{line.server_address[1]}"
        mirror = start_mirror(str(sweep.path), uri)
        assert mirror.wait_ready(HANG_S).experiment_id
        behind = f"http://127.0.0.1:{port}"
        until(lambda: [run.info.status for run in shown(sweep, behind).children].count("FINISHED") >= 2)
        line.silent_after = line.pieces
        silent = mirror.close(8)
        assert 0 < silent.delivered < 12
        assert silent.pending == tuple(names[silent.delivered :])
        assert silent.error in {f"MLflow has taken nothing for {seconds} s" for seconds in (7, 8)}

        line.silent_after = float("inf")
        mirror = start_mirror(str(sweep.path), uri)
        assert mirror.wait_ready(HANG_S).experiment_id
        # As at a terminal: what a shell starts in the background ignores it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stopped = mirror.close(HANG_S, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert (stopped.error, stopped.pending[-1]) == ("interrupted", names[-1])

        command = ["sync", str(sweep.path), "--tracking-uri", uri]
        before = line.pieces
        syncing = subprocess.Popen(
            [sys.executable, "-m", "bdray", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        until(lambda: line.pieces > before + 4)
        syncing.send_signal(signal.SIGINT)
        output, _ = syncing.communicate(timeout=HANG_S)
        assert (syncing.returncode, "are not: interrupted" in output) == (3, True), output
        assert output.endswith(f"deliver the rest with: python -m bdray {' '.join(command)}\n")
        assert sync_sweep(str(sweep.path), f"http://127.0.0.1:{port}") == DeliveryReport(12)


def test_when_the_driver_is_killed_the_mirror_delivers_and_ends(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    name = sweep.finished(1)
    code = (
        "import os, bdray.tracking as t\n"
        f"mirror = t.start_mirror({str(sweep.path)!r}, {sweep.uri!r})\n"
        "print(mirror._process.pid, flush=True)\n"
        "mirror.wait_ready()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    driver = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    stat = Path("/proc", driver.stdout.strip(), "stat")
    until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")
    assert shown(sweep).points(name) == sweep.points(name)


def test_two_mirrors_of_one_sweep_make_no_run_twice(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    for number in range(1, 9):
        sweep.finished(number)
    mirrors = [start_mirror(str(sweep.path), sweep.uri) for _ in range(2)]
    waiting, delivering = sorted(mirrors, key=lambda mirror: mirror.wait_ready(HANG_S).experiment_id)
    with pytest.raises(TrackingError, match=r"delivered to MLflow just now, by process \d+ on"):
        sync_sweep(str(sweep.path))
    assert delivering.close(HANG_S) == DeliveryReport(8)
    assert waiting.close(HANG_S) == DeliveryReport(8)
    assert len(shown(sweep).children) == 8
    assert len(shown(sweep).parents) == 1


def test_sync_follows_a_sweep_to_its_end(new_sweep: Any, shown: Any) -> None:
    """As typed; with epochs while it runs, and a backlog that does not hold them up."""
    sweep = new_sweep()
    first, others = sweep.condition(1), [sweep.finished(number) for number in range(2, 6)]
    sweep.journal(first, 2)
    command = [sys.executable, "-m", "bdray", "sync", str(sweep.path), "--follow"]
    with file_lock(sweep.path / ".lock", 0, AssertionError):
        following = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        until(lambda: shown(sweep).children and shown(sweep).points(first) == sweep.points(first))
        sweep.journal(first, 3)
        until(lambda: shown(sweep).points(first) == sweep.points(first))
        assert following.poll() is None
        sweep.record(first)
    output, _ = following.communicate(timeout=HANG_S)
    assert (following.returncode, b"5 conditions are in MLflow" in output) == (0, True), output
    mlflow = shown(sweep)
    assert all(mlflow.points(name) == sweep.points(name) for name in [first, *others])
    assert mlflow.parents[0].info.status == "FINISHED"


def test_who_follows_makes_way_for_the_last_pass_of_the_driver(new_sweep: Any, shown: Any) -> None:
    """Found: each waited for the other; after a minute the driver said that MLflow lacks what follows (3)."""
    sweep = new_sweep()
    sweep.finished(1)
    command = [sys.executable, "-m", "bdray", "sync", str(sweep.path), "--follow"]
    options: Any = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    with file_lock(sweep.path / ".lock", 0, AssertionError), subprocess.Popen(command, **options) as following:
        until(lambda: shown(sweep).children)
        mirror = start_mirror(str(sweep.path), sweep.uri)
        assert "still delivering" in mirror.wait_ready(HANG_S).message
        say_phase(Storage.open(sweep.path), "delivering")
        sweep.finished(2)
        assert mirror.close(HANG_S) == DeliveryReport(2)
        assert following.wait(HANG_S) == 0
    assert len(shown(sweep).children) == 2


def test_sync_follows_a_sweep_beside_its_mirror(
    new_sweep: Any, shown: Any, tmp_path: Path, empty_database: Path
) -> None:
    """Found: the mirror of every sweep that runs held the lock that following took, to whatever server."""
    sweep, second = new_sweep(), f"sqlite:///{tmp_path}/second.db"
    shutil.copy(empty_database, tmp_path / "second.db")
    sweep.journal(first := sweep.condition(1), 2)
    command = [sys.executable, "-m", "bdray", "sync", str(sweep.path), "--follow"]
    options: Any = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    with file_lock(sweep.path / ".lock", 0, AssertionError):
        mirror = start_mirror(str(sweep.path), sweep.uri)
        assert mirror.wait_ready(HANG_S).experiment_id
        waiting = subprocess.Popen(command, **options)
        following = subprocess.Popen([*command, "--tracking-uri", second], **options)
        until(lambda: shown(sweep, second).children and shown(sweep, second).points(first) == sweep.points(first))
        assert waiting.stdout is not None
        said = [waiting.stdout.readline() for _ in range(2)][1]
        assert f"just now, by process {mirror._process.pid} on " in said
        assert said.endswith("; waiting for the end of the sweep\n")
        sweep.record(first)
        assert mirror.close(HANG_S) == DeliveryReport(1)
    for process in (waiting, following):
        output, _ = process.communicate(timeout=HANG_S)
        assert (process.returncode, "1 conditions are in MLflow" in output) == (0, True), output
    for uri in (sweep.uri, second):
        assert (len(shown(sweep, uri).children), len(shown(sweep, uri).parents)) == (1, 1)


def test_a_refusal_is_told_before_anything_runs(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    sync_sweep(str(sweep.path))
    mlflow = shown(sweep)
    mlflow.client.delete_experiment(mlflow.experiment.experiment_id)
    mirror = start_mirror(str(sweep.path), sweep.uri)
    with pytest.raises(TrackingError, match="'bdray-demo' was deleted"):
        mirror.wait_ready(HANG_S)
    sweep.finished(1)
    report = mirror.close(HANG_S)
    assert report.pending == ("000000000001",)
    assert "was deleted" in (report.error or "")


def test_a_mirror_killed_at_its_start_or_in_its_last_pass_is_started_again(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    names = [sweep.finished(number) for number in range(1, 16)]
    mirror = start_mirror(str(sweep.path), sweep.uri)
    mirror._process.kill()
    assert mirror.wait_ready(HANG_S).experiment_id
    killed: list[str] = []

    def kill(name: str, total: int) -> None:
        if not killed:
            mirror._process.kill()
        killed.append(name)

    assert mirror.close(HANG_S, kill) == DeliveryReport(15)
    assert set(killed) == set(names)
    assert len(shown(sweep).children) == 15


CUT_OFF = """
import os, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from bdray.tracking.server import open_client
from benchmarks.tracking_server import TrackingServer

@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, *rest):
    if statement.startswith("INSERT INTO _alembic_tmp_"):
        os.kill(os.getpid(), 9)

open_client(sys.argv[1])
"""


def test_a_database_whose_making_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    """MLflow alone never opens it again: `table _alembic_tmp_runs already exists`."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-c", CUT_OFF, uri]
    killed = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    assert open_client(uri).search_experiments()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
