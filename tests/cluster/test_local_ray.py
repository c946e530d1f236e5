"""What Ray opens when a sweep starts it: to this machine, and with a token of its user's."""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import HANG_S

from bdray.cluster.local_ray import keep_token_private
from bdray.machine import allowed_cores

LISTENING = """
import os, sys, psutil, ray
from bdray.cluster import ClusterRun, ClusterSettings

@ray.remote
def inside():
    return ray.util.get_node_ip_address()

with ClusterRun(ClusterSettings(num_cpus=1, dashboard=False)):
    assert ray.get(inside.remote()) == "127.0.0.1"
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                print("listens", connection.laddr.ip, connection.laddr.port, process.name())
print("env", [os.environ.get(n) for n in ("RAY_enable_metrics_collection", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")])
"""


LONG = "from bdray.cluster import ClusterRun, ClusterSettings; ClusterRun(ClusterSettings(num_cpus=1)).__enter__()"


@pytest.mark.system
def test_a_temporary_folder_too_long_for_sockets_is_said_at_once_with_advice(tmp_path: Path) -> None:
    (folder := tmp_path / ("long" * 20)).mkdir()
    environment = {**os.environ, "RAY_TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, env=environment, check=False)
    said = re.search(
        r"UserError: the temporary folder (\S+) has too long a path: .* of at most (\d+) bytes", done.stderr
    )
    assert said is not None, done.stderr
    assert said[1] == str(folder)
    # Sockets are named by the moment and the process, whose number may have more digits.
    assert 30 < int(said[2]) < 60
    assert len(list(folder.glob("ray/session_2*"))) == 1, "tried once"


@pytest.mark.system
@pytest.mark.long
def test_nothing_that_ray_opens_can_be_reached_from_another_machine() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LISTENING], stdout=subprocess.PIPE, text=True, timeout=HANG_S, check=True
    )
    ports = [line.split() for line in run.stdout.splitlines() if line.startswith("listens")]
    assert len(ports) >= 4, run.stdout
    for _, address, _, _ in ports:
        ip = ipaddress.ip_address(address)
        assert (getattr(ip, "ipv4_mapped", None) or ip).is_loopback, run.stdout
    assert "env [None, None]" in run.stdout, "what was set for the start is taken back"


PINNED = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
from bdray.cluster import ClusterRun, ClusterSettings
with ClusterRun(ClusterSettings(dashboard=False)) as cluster:
    print(cluster.resources()["cpu"])
"""


@pytest.mark.system
@pytest.mark.parametrize("cores", [1, pytest.param(2, marks=pytest.mark.long)])
def test_ray_has_the_cores_that_the_process_is_allowed(cores: int) -> None:
    """As under `taskset` and a batch system's cpuset; `OMP_NUM_THREADS` is about the threads of one process."""
    command = [sys.executable, "-c", PINNED, str(cores)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=HANG_S, check=True)
    assert run.stdout == f"{float(min(cores, allowed_cores()))}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_token_is_made_for_its_owner_alone(home: Path) -> None:
    before = os.umask(0)
    try:
        keep_token_private()
    finally:
        os.umask(before)
    token = home / ".ray" / "auth_token"
    content = token.read_text()
    assert mode(token) == 0o600
    assert len(bytes.fromhex(content)) == 32
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]
    keep_token_private()
    assert token.read_text() == content


def test_a_token_that_everybody_can_read_is_taken_back(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    keep_token_private()
    assert mode(token) == 0o600
    assert token.read_text() == "0" * 64


def test_no_token_is_made_where_ray_is_told_of_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    keep_token_private()
    assert not (home / ".ray").exists()
